"use strict";
// Three planes of one study with the contribution of each token laid over them. Voxels arrive as PNG mosaics (slices one
// below the other, growing toward the head, the front and the patient's right), contributions as int8 on the token grid.
(() => {
  const data = JSON.parse(document.getElementById("cases").textContent);
  const root = document.getElementById("looked");
  if (!root || !data.length) return;
  const pick = root.querySelector("#finding"), windows = root.querySelector("#window"), strength = root.querySelector("#strength");
  const planes = ["axial", "coronal", "sagittal"];
  let current = null;

  const bytes = (text) => Int8Array.from(atob(text), (c) => (c.charCodeAt(0) << 24) >> 24);
  const load = (uri) => new Promise((resolve, reject) => { const i = new Image(); i.onload = () => resolve(i); i.onerror = reject; i.src = uri; });

  async function voxels(item, window) {
    const image = await load(item.windows[window].image), [d, h, w] = item.size;
    const canvas = document.createElement("canvas");
    canvas.width = w; canvas.height = d * h;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, w, d * h).data, grey = new Uint8Array(d * h * w);
    for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
    return grey;
  }

  // Axes (row, column, across) of a plane in D, H, W, all seen from the patient's feet, face or left.
  const axes = { axial: [1, 2, 0], coronal: [0, 2, 1], sagittal: [0, 1, 2] };

  function slice(size, plane, place, value, paint) {
    const [r, c, a] = axes[plane], rows = size[r], columns = size[c];
    const canvas = document.createElement("canvas");
    canvas.width = columns; canvas.height = rows;
    const context = canvas.getContext("2d"), out = context.createImageData(columns, rows), at = [0, 0, 0];
    at[a] = place;
    for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
      at[r] = rows - 1 - y; at[c] = columns - 1 - x;
      paint(out.data, 4 * (y * columns + x), value((at[0] * size[1] + at[1]) * size[2] + at[2]));
    }
    context.putImageData(out, 0, 0);
    return canvas;
  }

  const grey = (o, i, v) => { o[i] = o[i + 1] = o[i + 2] = v; o[i + 3] = 255; };
  const colour = (o, i, v) => { const p = v > 0; o[i] = p ? 255 : 60; o[i + 1] = p ? 120 : 130; o[i + 2] = p ? 20 : 255; o[i + 3] = Math.min(255, 2 * Math.abs(v)); };

  function draw() {
    if (!current) return;
    const { item, grey: voxel, share } = current;
    for (const plane of planes) {
      const figure = root.querySelector(`.${plane}`), slider = figure.querySelector("input");
      const [r, c, a] = axes[plane], place = Number(slider.value);
      const canvas = figure.querySelector("canvas"), context = canvas.getContext("2d");
      const wide = item.size[c] * item.spacing[c], high = item.size[r] * item.spacing[r];
      canvas.width = 480; canvas.height = Math.max(1, Math.round((480 * high) / wide));
      context.imageSmoothingEnabled = true; context.imageSmoothingQuality = "high";
      context.globalAlpha = 1;
      context.drawImage(slice(item.size, plane, place, (i) => voxel[i], grey), 0, 0, canvas.width, canvas.height);
      context.globalAlpha = Number(strength.value) / 100;
      const token = Math.min(item.grid[a] - 1, Math.floor((place * item.grid[a]) / item.size[a]));
      context.drawImage(slice(item.grid, plane, token, (i) => share[i], colour), 0, 0, canvas.width, canvas.height);
      figure.querySelector("output").textContent = `${place + 1} / ${item.size[a]}`;
    }
  }

  async function show(keep) {
    const item = data[pick.value];
    if (!keep) {
      windows.replaceChildren(...item.windows.map((w, i) => new Option(w.name, i)));
      windows.value = item.windows.length - 1;
    }
    windows.parentElement.hidden = item.windows.length === 1;
    current = { item, grey: await voxels(item, windows.value), share: bytes(item.share) };
    for (const plane of planes) {
      const a = axes[plane][2], figure = root.querySelector(`.${plane}`), slider = figure.querySelector("input");
      figure.hidden = item.size[0] === 1 && plane !== "axial";
      figure.querySelector("figcaption").hidden = item.size[0] === 1; // an image is no plane
      slider.max = item.size[a] - 1; slider.hidden = item.size[a] === 1;
      if (!keep) slider.value = Math.floor(((item.peak[a] + 0.5) * item.size[a]) / item.grid[a]);
    }
    root.querySelector("#prompt").textContent = `“${item.prompt}” (AUROC of this finding ${item.auroc.toFixed(2)})`;
    draw();
    root.dataset.shown = `${item.finding}, ${item.windows[windows.value].name}`;
  }

  pick.replaceChildren(...data.map((item, i) => new Option(item.finding, i)));
  pick.addEventListener("change", () => show(false));
  windows.addEventListener("change", () => show(true));
  strength.addEventListener("input", draw);
  for (const plane of planes) root.querySelector(`.${plane} input`).addEventListener("input", draw);
  show(false);
})();
