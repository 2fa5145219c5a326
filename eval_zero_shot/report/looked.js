"use strict";
// Where the model looked: three planes of one study with a map on its token grid laid over them. Voxels arrive as PNG
// mosaics (slices one below the other), maps as int8.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent).looked;
  const root = document.getElementById("looked");
  if (!root || !data.length) return;
  const $ = (id) => root.querySelector(`#${id}`), windows = $("window"), strength = $("strength"), maps = $("map");
  const load = (uri) => new Promise((resolve, reject) => { const i = new Image(); i.onload = () => resolve(i); i.onerror = reject; i.src = uri; });
  let current = null;

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

  function draw() {
    if (!current) return;
    const { item, grey, values } = current;
    for (const plane of Planes.names) {
      const figure = root.querySelector(`.${plane}`), place = Number(figure.querySelector("input").value);
      const base = Planes.slice(item.size, plane, place, (i) => grey[i], Planes.grey);
      Planes.paint(figure.querySelector("canvas"), plane, place, item, base, values, Number(strength.value) / 100);
      figure.querySelector("output").textContent = `${place + 1} / ${item.size[Planes.axes[plane][2]]}`;
    }
  }

  async function show(keep) {
    const item = data[$("finding").value];
    if (!keep) {
      windows.replaceChildren(...item.windows.map((w, i) => new Option(w.name, i)));
      windows.value = item.windows.length - 1;
      const was = maps.selectedIndex;
      maps.replaceChildren(...item.maps.map((m, i) => new Option(m.name, i)));
      if (was > 0 && was < item.maps.length) maps.selectedIndex = was;
    }
    windows.parentElement.hidden = item.windows.length === 1;
    maps.parentElement.hidden = item.maps.length === 1;
    current = { item, grey: await voxels(item, windows.value), values: Planes.bytes(item.maps[maps.value].values) };
    for (const plane of Planes.names) {
      const a = Planes.axes[plane][2], figure = root.querySelector(`.${plane}`), slider = figure.querySelector("input");
      figure.hidden = item.size[0] === 1 && plane !== "axial";
      figure.querySelector("figcaption").hidden = item.size[0] === 1; // an image is no plane
      slider.max = item.size[a] - 1; slider.hidden = item.size[a] === 1;
      if (!keep) slider.value = Planes.middle(item, plane, item.peak);
    }
    $("prompt").textContent = `“${item.prompt}” (AUROC of this finding ${item.auroc.toFixed(2)})`;
    $("map-kind").textContent = `Map: ${item.maps[maps.value].name}`;
    draw();
    root.querySelector(".planes").classList.toggle("single", item.size[0] === 1);
    root.dataset.model = item.model;
    root.dataset.shown = `${item.finding}, ${item.windows[windows.value].name}, ${item.maps[maps.value].name}`;
  }

  function model() {
    const own = data.map((item, i) => [item, i]).filter(([item]) => item.model === $("looked-model").value);
    $("finding").replaceChildren(...own.map(([item, i]) => new Option(item.finding, i)));
    show(false);
  }
  const models = [...new Set(data.map((item) => item.model))];
  $("looked-model").replaceChildren(...models.map((m) => new Option(m, m)));
  $("looked-model").parentElement.hidden = models.length === 1;
  $("looked-model").addEventListener("change", model);
  $("finding").addEventListener("change", () => show(false));
  for (const select of [windows, maps]) select.addEventListener("change", () => show(true));
  strength.addEventListener("input", draw);
  for (const plane of Planes.names) root.querySelector(`.${plane} input`).addEventListener("input", draw);
  model();
})();
