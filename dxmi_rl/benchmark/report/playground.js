"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const { tasks, runs } = JSON.parse(get("content").textContent);
  document.documentElement.classList.add("scripted");
  const NAMES = { energy: "energy E [nats]", value: "value: expected soft return [nats]", log_weight: "log weight [nats]" };
  // Cividis, which the colour-blind see as everybody does.
  const SCALE = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const text = (value) => Number.isFinite(value) ? String(+value.toPrecision(3)) : value === undefined ? "" : "∞";
  const svg = (name, attributes, content) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (content !== undefined) element.textContent = content;
    return element;
  };
  const quantile = (sorted, part) => {
    const at = part * (sorted.length - 1), below = Math.floor(at), above = Math.ceil(at);
    return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
  };
  const finite = (values) => [...values].filter(Number.isFinite).sort((a, b) => a - b);

  // The choice --------------------------------------------------------------------------------------------------------
  const [task, agent, horizon, seed, colour] = ["task", "agent", "T", "seed", "colour"].map(get);
  const slider = get("t"), number = get("path"), play = get("play"), canvas = get("canvas");
  let run, scene, numbers, timer = 0, liked = "energy";

  function fill(select, values, wanted) {
    const found = [...new Set(values)].map(String);
    select.replaceChildren(...found.map((value) => new Option(value.replace("_", " "), value)));
    select.value = found.includes(String(wanted)) ? wanted : found[0];
  }
  function choose(wanted = {}) {
    const value = (select, key) => wanted[key] ?? select.value;
    fill(task, runs.map((one) => one.task), value(task, "task"));
    let left = runs.filter((one) => one.task === task.value);
    for (const [select, key] of [[agent, "agent"], [horizon, "T"], [seed, "seed"]]) {
      fill(select, left.map((one) => one[key]), value(select, key));
      left = left.filter((one) => String(one[key]) === select.value);
    }
    stop();
    run = left[0];
    scene = tasks[run.task];
    const count = run.shape[1], steps = run.shape[0] - 1;
    run.bytes ??= bytes(run.data);
    numbers = {};
    for (const key of Object.keys(NAMES)) if (run[key]) numbers[key] = new Float32Array(bytes(run[key]).buffer);
    liked = wanted.colour ?? liked;
    fill(colour, ["nothing", ...Object.keys(numbers)], liked);
    shade(scene, dark.matches);
    slider.max = steps;
    slider.disabled = play.disabled = steps === 0;
    slider.value = Math.min(steps, wanted.t ?? steps);
    number.max = count - 1;
    number.value = Math.max(0, Math.min(count - 1, Math.floor(+(wanted.path ?? number.value)) || 0));
    get("note").textContent = [
      steps === 0 ? "This agent has no density: only its samples are kept." : "",
      numbers.log_weight ? "The log weight of a path so far is minus the log-density of its start x₀ and, of every step, the log-probability of "
        + "the way back less that of the policy; the last has -E / τ added." : "", scene.note,
    ].filter(Boolean).join(" ");
    draw();
  }

  // States ------------------------------------------------------------------------------------------------------------
  // Value i between the steps around t, in [0, 1] of the scene's range.
  function mixer(t) {
    const size = run.shape.slice(1).reduce((a, b) => a * b, 1), last = run.shape[0] - 1;
    const before = Math.min(Math.floor(t), Math.max(0, last - 1)), part = last === 0 ? 0 : t - before;
    const a = before * size, b = last === 0 ? a : a + size;
    const scale = (run.high - run.low) / 255 / (scene.high - scene.low), shift = (run.low - scene.low) / (scene.high - scene.low);
    return (i) => shift + scale * (run.bytes[a + i] * (1 - part) + run.bytes[b + i] * part);
  }
  const at = (key, t, n) => numbers[key][Math.round(t) * run.shape[1] + n];
  const slice = (key, t) => numbers[key].subarray(Math.round(t) * run.shape[1], (Math.round(t) + 1) * run.shape[1]);

  function paint(t) {
    const key = colour.value;
    get("scale").hidden = !(key in numbers);
    if (!(key in numbers)) return () => getComputedStyle(document.body).getPropertyValue("--colour-0");
    const sorted = finite(slice(key, t)), low = quantile(sorted, 0.05), high = quantile(sorted, 0.95);
    get("scale-low").textContent = text(low);
    get("scale-high").textContent = text(high);
    get("scale-bar").style.background = `linear-gradient(to right, ${SCALE.join(",")})`;
    return (n) => {
      const part = high > low ? (at(key, t, n) - low) / (high - low) : 0.5;
      return SCALE[Math.max(0, Math.min(SCALE.length - 1, Math.floor((Number.isFinite(part) ? part : 1) * SCALE.length)))];
    };
  }
  // Where every state is drawn, in parts of the canvas: [left, top, width, height] of images, [x, y] of points.
  function places(t) {
    const value = mixer(t), count = run.shape[1];
    if (scene.kind !== "images") return Array.from({ length: count }, (_, n) => [value(2 * n), 1 - value(2 * n + 1)]);
    const across = Math.ceil(Math.sqrt(count));
    return Array.from({ length: count }, (_, n) => [n % across / across, Math.floor(n / across) / across, 1 / across, 1 / across]);
  }
  function drawStates(t) {
    const side = Math.round(canvas.clientWidth * Math.min(2, devicePixelRatio || 1)) || 480;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), colours = paint(t), chosen = +number.value, found = places(t);
    const style = getComputedStyle(document.body), ink = style.getPropertyValue("--text"), orange = style.getPropertyValue("--colour-1");
    context.clearRect(0, 0, side, side);
    context.imageSmoothingEnabled = false;
    if (scene.kind === "images") {
      const [, , channels, height, width] = run.shape, value = mixer(t), pixels = height * width;
      found.forEach(([left, top, across, down], n) => {
        const sheet = document.createElement("canvas"), picture = new ImageData(width, height);
        [sheet.width, sheet.height] = [width, height];
        for (let p = 0; p < pixels; p++) {
          for (let c = 0; c < 3; c++) picture.data[4 * p + c] = 255 * value((n * channels + Math.min(c, channels - 1)) * pixels + p);
          picture.data[4 * p + 3] = 255;
        }
        sheet.getContext("2d").putImageData(picture, 0, 0);
        const edge = side * across * 0.05;
        context.fillStyle = n === chosen ? orange : colours(n);
        context.fillRect(side * left + edge / 4, side * top + edge / 4, side * across - edge / 2, side * down - edge / 2);
        context.drawImage(sheet, side * left + edge, side * top + edge, side * across - 2 * edge, side * down - 2 * edge);
      });
      return;
    }
    if (scene.shading) context.drawImage(scene.shading, 0, 0, side, side);
    context.lineWidth = side / 900;
    context.strokeStyle = ink;
    const dot = (n, radius) => {
      context.beginPath();
      context.arc(side * found[n][0], side * found[n][1], radius, 0, 7);
    };
    found.forEach((_, n) => {
      dot(n, side / 130);
      context.fillStyle = colours(n);
      context.fill();
      context.stroke();
    });
    context.strokeStyle = orange;
    context.lineWidth = side / 200;
    context.beginPath();
    for (let step = 0; step <= t; step++) {
      const value = mixer(step);
      context.lineTo(side * value(2 * chosen), side * (1 - value(2 * chosen + 1)));
    }
    context.lineTo(side * found[chosen][0], side * found[chosen][1]);
    context.stroke();
    dot(chosen, side / 80);
    context.stroke();
  }

  // Numbers -----------------------------------------------------------------------------------------------------------
  function chart(key, t) {
    const [width, height, left, right, top, bottom] = [440, 150, 56, 12, 22, 26];
    const steps = run.shape[0] - 1, chosen = +number.value;
    const levels = Array.from({ length: steps + 1 }, (_, step) => finite(slice(key, step)));
    const own = levels.map((_, step) => at(key, step, chosen));
    const shown = finite([...levels.flatMap((values) => [0.25, 0.5, 0.75].map((part) => quantile(values, part))), ...own]);
    const [low, high] = [shown[0], shown[shown.length - 1]], span = high - low || 1;
    const x = (step) => left + (width - left - right) * (steps ? step / steps : 0.5);
    const y = (value) => top + (height - top - bottom) * (1 - (Math.max(low, Math.min(high, value)) - low) / span);
    const line = (values) => values.map((value, step) => `${step ? "L" : "M"}${x(step)} ${y(value)}`).join("");
    const part = (share) => levels.map((values) => quantile(values, share));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img",
      "aria-label": `${NAMES[key]} at every step: from ${text(own[0])} to ${text(own[steps])} on path ${chosen}` });
    const back = part(0.75).map((value, step) => `L${x(step)} ${y(value)}`).reverse().join("");
    picture.append(
      svg("text", { x: left, y: 13 }, NAMES[key]),
      svg("text", { x: width - 2, y: height - bottom + 4, "text-anchor": "end" }, "t"),
      svg("path", { d: `M${left} ${top}V${height - bottom}H${width - right}`, class: "axis" }),
      svg("path", { d: `${line(part(0.25))}${back}Z`, class: "band" }),
      svg("path", { d: line(part(0.5)), class: "median" }),
      svg("path", { d: line(own), class: "chosen" }),
      ...own.map((value, step) => svg("circle", { cx: x(step), cy: y(value), r: 3 })),
      svg("path", { d: `M${x(t)} ${top}V${height - bottom}`, class: "now" }),
      svg("text", { x: left - 6, y: y(high) + 4, "text-anchor": "end" }, text(high)),
      ...(high > low ? [svg("text", { x: left - 6, y: y(low) + 4, "text-anchor": "end" }, text(low))] : []),
    );
    const every = Math.ceil((steps + 1) / 11);
    for (let step = 0; step <= steps; step += every) {
      picture.append(svg("text", { x: x(step), y: height - 8, "text-anchor": "middle" }, step));
    }
    return picture;
  }
  function table(t) {
    const chosen = +number.value, steps = run.shape[0] - 1, keys = Object.keys(numbers);
    const head = ["t", ...(scene.kind === "images" ? [] : ["x₁", "x₂"]), ...keys.map((key) => key.replace("_", " "))];
    const row = (cells, tag) => {
      const line = document.createElement("tr");
      for (const cell of cells) {
        const element = document.createElement(tag);
        [element.textContent, element.className] = [cell, "number"];
        line.append(element);
      }
      return line;
    };
    const lines = Array.from({ length: steps + 1 }, (_, step) => {
      const value = mixer(step), place = (i) => text(scene.low + (scene.high - scene.low) * value(2 * chosen + i));
      const state = scene.kind === "images" ? [] : [place(0), place(1)];
      const line = row([step, ...state, ...keys.map((key) => text(at(key, step, chosen)))], "td");
      line.classList.toggle("best", step === Math.round(t));
      return line;
    });
    const caption = document.createElement("caption"), [thead, tbody] = ["thead", "tbody"].map((tag) => document.createElement(tag));
    caption.textContent = `Path ${chosen}`;
    thead.append(row(head, "th"));
    tbody.append(...lines);
    get("table").replaceChildren(caption, thead, tbody);
  }
  function effective(t) {
    if (!numbers.log_weight) return "";
    const logs = slice("log_weight", t), top = Math.max(...logs), weights = Array.from(logs, (value) => Math.exp(value - top));
    const sum = weights.reduce((a, b) => a + b, 0), squares = weights.reduce((a, b) => a + b * b, 0);
    return ` Effective sample size of the weights at t = ${Math.round(t)}: ${text(sum * sum / squares)} of ${logs.length}.`;
  }

  function draw() {
    const t = +slider.value;
    get("t-text").textContent = `${Number.isInteger(t) ? t : t.toFixed(1)} of ${run.shape[0] - 1}`;
    drawStates(t);
    if (timer) return;  // numbers follow when it stops
    get("facts").textContent = `${run.agent} on ${run.task}, T = ${run.T}, seed ${run.seed}${run.score ? `: ${run.score}` : ""}.${effective(t)}`;
    get("charts").replaceChildren(...Object.keys(numbers).map((key) => chart(key, t)));
    table(t);
    const kept = { task: run.task, agent: run.agent, T: run.T, seed: run.seed, colour: colour.value, t, path: number.value };
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  }
  const fromAddress = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

  // Controls ----------------------------------------------------------------------------------------------------------
  function stop() {
    cancelAnimationFrame(timer);
    timer = 0;
    play.textContent = "▶ play";
  }
  play.addEventListener("click", () => {
    if (timer) {
      stop();
      return draw();
    }
    const last = +slider.max, from = +slider.value >= last ? 0 : +slider.value, began = performance.now() - 800 * from;
    const frame = (now) => {
      const t = (now - began) / 800;
      slider.value = Math.min(last, still.matches ? Math.floor(t) : t);
      if (t >= last) stop();
      else timer = requestAnimationFrame(frame);
      draw();
    };
    play.textContent = "❚❚ pause";
    timer = requestAnimationFrame(frame);
  });
  slider.addEventListener("input", () => { stop(); draw(); });
  number.addEventListener("input", () => {
    if (number.value === "" || !number.checkValidity()) return;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect(), x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    const distance = ([left, top, width = 0, height = 0]) => (left + width / 2 - x) ** 2 + (top + height / 2 - y) ** 2;
    const found = places(+slider.value).map(distance);
    number.value = found.indexOf(Math.min(...found));
    draw();
  });
  for (const select of [task, agent, horizon, seed]) select.addEventListener("change", () => choose());
  colour.addEventListener("change", () => { liked = colour.value; draw(); });
  get("choices").addEventListener("submit", (event) => event.preventDefault());
  dark.addEventListener("change", () => { shade(scene, dark.matches); draw(); });
  addEventListener("hashchange", () => choose(fromAddress()));
  new ResizeObserver(draw).observe(canvas);
  choose(fromAddress());
})();
