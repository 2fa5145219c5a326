"use strict";
// Slices of a study and maps on its token grid. Arrays are D, H, W, growing toward the head, the front and the patient's
// right; every plane is drawn as radiologists see it, so rows and columns run backwards.
const Planes = (() => {
  const names = ["axial", "coronal", "sagittal"];
  const axes = { axial: [1, 2, 0], coronal: [0, 2, 1], sagittal: [0, 1, 2] }; // row, column, across
  const bytes = (text) => Int8Array.from(atob(text), (c) => (c.charCodeAt(0) << 24) >> 24);

  function slice(size, plane, place, value, paint) {
    const [r, c, a] = axes[plane], rows = size[r], columns = size[c], at = [0, 0, 0];
    const canvas = document.createElement("canvas");
    canvas.width = columns; canvas.height = rows;
    const context = canvas.getContext("2d"), out = context.createImageData(columns, rows);
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

  // base: what drawImage takes; item: {size, spacing, grid}; values: Int8Array on the grid, or null for none.
  function paint(canvas, plane, place, item, base, values, strength) {
    const [r, c, a] = axes[plane], context = canvas.getContext("2d");
    const wide = item.size[c] * item.spacing[c], high = item.size[r] * item.spacing[r];
    canvas.width = 480; canvas.height = Math.max(1, Math.round((480 * high) / wide));
    context.imageSmoothingEnabled = true; context.imageSmoothingQuality = "high";
    context.drawImage(base, 0, 0, canvas.width, canvas.height);
    if (!values) return;
    context.globalAlpha = strength;
    const token = Math.min(item.grid[a] - 1, Math.floor((place * item.grid[a]) / item.size[a]));
    context.drawImage(slice(item.grid, plane, token, (i) => values[i], colour), 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  }
  const middle = (item, plane, peak) => { const a = axes[plane][2]; return Math.floor(((peak[a] + 0.5) * item.size[a]) / item.grid[a]); };
  return { names, axes, bytes, slice, grey, paint, middle };
})();
