"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("scripted");
  const status = document.getElementById("status");

  // Copy buttons ------------------------------------------------------------------------------------------------------
  function copyOldWay(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const text = button.previousElementSibling.textContent;
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      done = copyOldWay(text);
      button.focus();
    }
    button.textContent = done ? "copied" : "select it";
    status.textContent = done ? "Command copied." : "Copying is not allowed here: select the text.";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });

  // Sorting -----------------------------------------------------------------------------------------------------------
  function sortBy(table, column, direction) {
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.value;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // missing ones last
      const numeric = x.trim() !== "" && y.trim() !== "" && Number.isFinite(+x) && Number.isFinite(+y);
      return sign * (numeric ? x - y : x.localeCompare(y, "en"));
    });
    body.append(...rows);
  }
  for (const header of all("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction);
      sortBy(header.closest("table"), header.cellIndex, direction);
    });
  }

  // Filters -----------------------------------------------------------------------------------------------------------
  const [task, label, text, columns, count] =
    ["filter-task", "filter-label", "filter-text", "all-columns", "filter-count"].map((id) => document.getElementById(id));
  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, total = 0;
    for (const table of all("table.filterable")) {
      let own = 0;
      table.classList.toggle("compact", !columns.checked);
      for (const row of table.tBodies[0].rows) {
        const content = row.textContent.toLowerCase();
        row.hidden = (task.value !== "" && row.dataset.task !== task.value)
          || (label.value !== "" && row.dataset.label !== label.value)
          || !words.every((word) => content.includes(word));
        own += !row.hidden;
        total += 1;
      }
      table.parentNode.hidden = own === 0 && table.tBodies[0].rows.length > 0;
      shown += own;
    }
    count.textContent = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
  }
  for (const control of [task, label, text, columns]) {
    control.addEventListener("input", filter);
    control.addEventListener("change", filter);
  }
  text.form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // Scenes ------------------------------------------------------------------------------------------------------------
  const data = JSON.parse(document.getElementById("scene-data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  class Panel {
    constructor(scene, panel, figure) {
      Object.assign(this, panel);
      this.scene = scene;
      this.canvas = figure.querySelector("canvas");
      this.image = figure.querySelector("img");
      this.bytes = bytes(panel.data);
      this.size = panel.shape.slice(1).reduce((a, b) => a * b, 1);
      this.canvas.hidden = false;
      this.image.hidden = true;
    }
    // Value i between the steps around t, in the panel's range mapped to [0, 1] of the scene's.
    mixer(t) {
      const last = this.shape[0] - 1;
      const step = Math.min(t, last), before = Math.min(Math.floor(step), Math.max(0, last - 1));
      const part = last === 0 ? 0 : step - before;
      const a = before * this.size, b = last === 0 ? a : a + this.size;
      const { low, high } = this.scene, scale = (this.high - this.low) / 255 / (high - low);
      const shift = (this.low - low) / (high - low), source = this.bytes;
      return (i) => shift + scale * (source[a + i] * (1 - part) + source[b + i] * part);
    }
    draw(t) {
      const side = Math.round(this.canvas.clientWidth * Math.min(2, devicePixelRatio || 1)) || 300;
      if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
      const context = this.canvas.getContext("2d");
      context.clearRect(0, 0, side, side);
      (this.scene.kind === "images" ? this.drawImages : this.drawPoints).call(this, context, side, this.mixer(t));
    }
    drawPoints(context, side, value) {
      if (this.scene.shading) context.drawImage(this.scene.shading, 0, 0, side, side);
      const count = this.shape[1], radius = side / 220 * Math.min(2.2, Math.max(1.15, 26 / Math.sqrt(count)));
      context.fillStyle = getComputedStyle(document.body).getPropertyValue(this.colour ?? "--text");
      context.globalAlpha = 0.8;
      context.beginPath();
      for (let i = 0; i < count; i++) {
        const x = value(2 * i) * side, y = (1 - value(2 * i + 1)) * side;
        if (x < 0 || y < 0 || x > side || y > side) continue;
        context.moveTo(x + radius, y);
        context.arc(x, y, radius, 0, 7);
      }
      context.fill();
      context.globalAlpha = 1;
    }
    drawImages(context, side, value) {
      const [, stored, channels, height, width] = this.shape, count = Math.min(64, stored);
      const across = Math.ceil(Math.sqrt(count)), down = Math.ceil(count / across), pixels = height * width;
      const picture = new ImageData(across * (width + 1) - 1, down * (height + 1) - 1);
      for (let n = 0; n < count; n++) {
        const left = (n % across) * (width + 1), top = Math.floor(n / across) * (height + 1);
        for (let p = 0; p < pixels; p++) {
          const at = 4 * ((top + Math.floor(p / width)) * picture.width + left + p % width);
          for (let c = 0; c < 3; c++) {
            picture.data[at + c] = 255 * value((n * channels + Math.min(c, channels - 1)) * pixels + p);
          }
          picture.data[at + 3] = 255;
        }
      }
      const sheet = document.createElement("canvas");
      [sheet.width, sheet.height] = [picture.width, picture.height];
      sheet.getContext("2d").putImageData(picture, 0, 0);
      context.imageSmoothingEnabled = false;
      const scale = side / Math.max(sheet.width, sheet.height);
      context.drawImage(sheet, 0, 0, sheet.width * scale, sheet.height * scale);
    }
  }

  function start(element) {
    const scene = data[element.dataset.task];
    const slider = element.querySelector("input"), output = element.querySelector("output");
    const play = element.querySelector(".play");
    const figures = all("figure", element);
    element.classList.add("drawn");
    shade(scene, dark.matches);
    const panels = scene.panels.map((panel, index) => new Panel(scene, panel, figures[index]));
    let timer = 0, began = 0;
    const draw = (t = +slider.value) => {
      output.textContent = `${Number.isInteger(t) ? t : t.toFixed(1)} of ${scene.horizon}`;
      for (const panel of panels) panel.draw(t);
    };
    const stop = () => {
      cancelAnimationFrame(timer);
      timer = 0;
      play.textContent = "▶ play";
    };
    const frame = (now) => {
      const t = (now - began) / 800;  // milliseconds per step
      const shown = Math.min(scene.horizon, still.matches ? Math.floor(t) : t);
      slider.value = shown;
      draw(shown);
      if (t >= scene.horizon) stop();
      else timer = requestAnimationFrame(frame);
    };
    play.addEventListener("click", () => {
      if (timer) return stop();
      const from = +slider.value >= scene.horizon ? 0 : +slider.value;
      began = performance.now() - 800 * from;
      play.textContent = "❚❚ pause";
      timer = requestAnimationFrame(frame);
    });
    slider.addEventListener("input", () => { stop(); draw(); });
    dark.addEventListener("change", () => { shade(scene, dark.matches); draw(); });
    new ResizeObserver(() => draw()).observe(figures[0]);
    draw();
  }
  // A scene is set up when it comes near the window, so that the page opens at once.
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      start(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const element of all(".scene")) observer.observe(element);
})();
