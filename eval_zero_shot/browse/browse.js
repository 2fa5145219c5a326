"use strict";
// Type a finding, see the studies ranked, scroll their slices with the map of the text laid over them.
(() => {
  const $ = (id) => document.getElementById(id), figures = Object.fromEntries(Planes.names.map((p) => [p, document.querySelector(`.${p}`)]));
  let asked = null, total = 0, study = null, turn = 0, opened = 0;

  async function get(path, query) {
    const answer = await fetch(path + (query ? `?${new URLSearchParams(query)}` : ""));
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return answer.json();
  }
  const say = (text) => { $("said").textContent = text; };
  const failed = (error) => say(error instanceof TypeError ? "the server does not answer: was it stopped?" : error.message);

  async function rank(more) {
    const mine = ++turn, list = $("ranking"), start = more ? list.children.length : 0;
    if (!more) asked = { text: $("text").value, minus: $("use-minus").checked ? $("minus").value : "" };
    say("ranking …");
    try {
      const found = await get("rank", { ...asked, lowest: $("order").value, start });
      if (mine !== turn) return;
      const rows = found.studies.map(([index, score], i) => {
        const row = document.createElement("li"), button = document.createElement("button");
        const place = document.createElement("span"), name = document.createElement("span"), value = document.createElement("span");
        place.textContent = start + i + 1; name.textContent = `study ${index + 1}`; value.textContent = score.toFixed(3); value.className = "score";
        button.type = "button"; button.dataset.study = index; button.append(place, name, value);
        button.addEventListener("click", () => open(index));
        row.append(button);
        return row;
      });
      if (more) list.append(...rows); else list.replaceChildren(...rows);
      total = found.total;
      $("more").hidden = list.children.length >= total;
      say(`${total} studies by “${asked.text}”${asked.minus ? ` minus “${asked.minus}”` : ""}`);
      if (!more && found.studies.length) await open(found.studies[0][0]);
    } catch (error) { if (mine === turn) failed(error); }
  }

  async function open(index) {
    const mine = ++opened;
    for (const button of $("ranking").querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.study) === index));
    try {
      const about = await get(`study/${index}`);
      if (mine !== opened) return;
      const same = study && study.index === index, window = $("window").selectedIndex;
      study = { ...about, index, grid: [1, 1, 1], values: null, peak: null, images: new Map(), seen: same ? study.seen : false };
      $("study").hidden = false;
      $("key").textContent = `Study ${index + 1}: ${about.key}`;
      $("window").replaceChildren(...about.windows.map((name, i) => new Option(name, i)));
      $("window").selectedIndex = window >= 0 && window < about.windows.length ? window : about.windows.length - 1;
      $("window").parentElement.hidden = about.windows.length === 1;
      const known = Object.entries(about.labels).map(([name, value]) => `${name.replaceAll("_", " ")}: ${value ? "yes" : "no"}`);
      $("labels").textContent = known.length ? `Labels: ${known.join("; ")}` : "";
      $("report").textContent = about.report || "(none)";
      document.querySelector(".planes").classList.toggle("single", about.size[0] === 1);
      for (const plane of Planes.names) {
        const a = Planes.axes[plane][2], slider = figures[plane].querySelector("input");
        figures[plane].hidden = about.size[0] === 1 && plane !== "axial";
        figures[plane].querySelector("figcaption").hidden = slider.hidden = about.size[a] === 1;
        slider.max = about.size[a] - 1;
        if (!same) slider.value = Math.floor(about.size[a] / 2);
      }
      draw();
      await map(mine);
    } catch (error) { if (mine === opened) failed(error); }
  }

  async function map(mine) {
    $("map-note").textContent = "";
    if (!$("heat").checked || !asked) { study.values = null; return draw(); }
    $("map-note").textContent = "map …";
    const found = await get(`map/${study.index}`, asked);
    if (mine !== opened) return;
    if (!found.name) { $("map-note").textContent = "This model's tower gives no tokens that could be drawn."; return; }
    study.grid = found.grid; study.values = Planes.bytes(found.values);
    $("map-note").textContent = `Map: ${found.name}, ${found.says}`;
    if (!study.seen) for (const plane of Planes.names) figures[plane].querySelector("input").value = Planes.middle(study, plane, found.peak);
    study.seen = true;
    await draw();
    $("study").dataset.map = `${study.index}: ${asked.text}`;
  }

  function image(plane, place) {
    const path = `slice/${study.index}/${plane}/${$("window").value}/${place}.png`;
    if (!study.images.has(path)) {
      study.images.set(path, new Promise((resolve, reject) => { const i = new Image(); i.onload = () => resolve(i); i.onerror = () => reject(new Error("a slice could not be read")); i.src = path; }));
    }
    return study.images.get(path);
  }

  async function drawPlane(plane) {
    const now = study, figure = figures[plane], place = Number(figure.querySelector("input").value), window = $("window").value;
    if (figure.hidden) return;
    figure.querySelector("output").textContent = `${place + 1} / ${now.size[Planes.axes[plane][2]]}`;
    const base = await image(plane, place);
    if (now !== study || Number(figure.querySelector("input").value) !== place || $("window").value !== window) return;
    Planes.paint(figure.querySelector("canvas"), plane, place, now, base, $("heat").checked ? now.values : null, Number($("strength").value) / 100);
    figure.dataset.shown = `${now.index}/${window}/${place}`;
  }
  const draw = () => Promise.all(Planes.names.map(drawPlane)).catch(failed);

  $("ask").addEventListener("submit", (event) => { event.preventDefault(); rank(false); });
  $("more").addEventListener("click", () => rank(true));
  $("order").addEventListener("change", () => asked && rank(false));
  const negative = () => { if (!$("minus").dataset.own) $("minus").value = $("text").value.trim() && `no ${$("text").value.trim().replace(/^there (is|are) (an? )?/i, "").replace(/\.$/, "")}`; };
  $("text").addEventListener("input", negative);
  $("minus").addEventListener("input", () => { $("minus").dataset.own = $("minus").value ? "1" : ""; });
  $("use-minus").addEventListener("change", () => { $("minus").disabled = !$("use-minus").checked; negative(); });
  $("window").addEventListener("change", draw);
  $("strength").addEventListener("input", draw);
  $("heat").addEventListener("change", () => study && map(opened).catch(failed));
  for (const plane of Planes.names) {
    const slider = figures[plane].querySelector("input");
    slider.addEventListener("input", () => drawPlane(plane).catch(failed));
    figures[plane].querySelector("canvas").addEventListener("wheel", (event) => {
      event.preventDefault();
      slider.value = Number(slider.value) + Math.sign(-event.deltaY);
      drawPlane(plane).catch(failed);
    }, { passive: false });
  }
  get("about").then((about) => { $("about").textContent = `${about.title}: ${about.studies} studies. ${about.alone ? "Only this machine can reach this page." : "Other machines can reach this page."}`; }).catch(failed);
})();
