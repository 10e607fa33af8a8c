"use strict";
// Of the report and the playground.
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// The energy: grey that grows away from the background where the energy is low.
function shade(scene, dark) {
  if (!scene.grid) return;
  const size = scene.size, picture = new ImageData(size, size), source = bytes(scene.grid);
  const [from, to] = dark ? [20, 84] : [255, 186];
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const at = 4 * ((size - 1 - y) * size + x);
      picture.data.fill(from + (to - from) * source[y * size + x] / 255, at, at + 3);
      picture.data[at + 3] = 255;
    }
  }
  scene.shading = document.createElement("canvas");
  scene.shading.width = scene.shading.height = size;
  scene.shading.getContext("2d").putImageData(picture, 0, 0);
}
