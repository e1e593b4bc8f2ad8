// The page of recsys.serve: no framework, no build, nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const HUES = [172, 28, 262, 205, 340, 95, 48, 300, 10, 225, 140, 60];
const state = {
  models: [], history: [], genres: new Set(), from: null, to: null,
  variety: 0, lists: [], open: null, catalog: [], hues: new Map(),
};

// ---------------------------------------------------------------- elements

/** Makes an element: attributes that are functions are listeners. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/** Splits a title: "Matrix, The (1999)" is "The Matrix" of 1999. */
function nameOf(item) {
  const [, text, year] = item.title.match(/^(.*?)(?:\s*\((\d{4})[^()]*\))?\s*$/);
  const article = /^(.+?), (The|An?|L[aeo]s?|L'|Il|Gli|I|El|Un[ae]?|Der|Die|Das|Den?|Det|Os?|As)( \(.*)?$/;
  const name = text.replace(article, (_, rest, first, end = "") =>
    first + (first.endsWith("'") ? "" : " ") + rest + end);
  // Other names in parentheses are left to the tooltip.
  return { name: name.replace(/ \([^()]*\)/g, "") || item.title, year: year ?? item.metadata.year };
}

function genresOf(item) {
  const genres = item.metadata.genres;
  return Array.isArray(genres) ? genres : genres ? [String(genres)] : [];
}

function words(item, { withGenres = true, mark = "" } = {}) {
  const { name, year } = nameOf(item);
  const genres = withGenres ? genresOf(item).slice(0, 4).join(" · ") : "";
  return el("span", { class: "words", title: item.title === name ? null : item.title },
    el("span", { class: "name" }, name), " ",
    year ? el("span", { class: "year" }, String(year)) : null,
    genres || mark ? el("span", { class: "genres" }, mark ? el("span", { class: "mark" }, mark) : null, genres) : null);
}

function color(genre, alpha = 1) {
  const hue = state.hues.get(genre);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (hue === undefined) return `hsl(210 6% ${dark ? 55 : 65}% / ${alpha})`;
  return `hsl(${hue} ${dark ? 50 : 48}% ${dark ? 62 : 45}% / ${alpha})`;
}

/** The rarest of an item's common genres says most about it. */
function mainGenre(item) {
  return genresOf(item).filter((each) => state.hues.has(each))
    .sort((a, b) => state.hues.rank.get(b) - state.hues.rank.get(a))[0];
}

function swatch(item) {
  const node = el("span", { class: "swatch", "aria-hidden": "true" });
  node.style.background = color(mainGenre(item));
  return node;
}

function bar(change, largest) {
  const part = el("i", { class: change < 0 ? "down" : "up" });
  part.style.width = `${Math.max(2, (100 * Math.abs(change)) / (largest || 1))}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, part);
}

const figures = new Intl.NumberFormat();
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
const say = (text) => { $("status").textContent = text; };

// --------------------------------------------------------------------- API

async function api(path, { body, model, signal, ...query } = {}) {
  const url = new URL(path, location.origin);
  if (model) query.model = model;
  for (const [name, value] of Object.entries(query)) {
    url.searchParams.set(name, value);
  }
  const headers = { "Content-Type": "application/json" };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(url, body === undefined ? { headers, signal }
    : { method: "POST", headers, signal, body: JSON.stringify(body) });
  const answer = await response.json();
  if (response.status === 401) { $("token-form").hidden = false; $("token").focus(); }
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

/** Runs what may fail and shows why it did. */
async function trying(work) {
  try {
    const found = await work();
    $("error").hidden = true;
    return found;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    $("error").textContent = error.message;
    $("error").hidden = false;
    return undefined;
  }
}

/** Only the newest of several calls gets an answer. */
function newest(work) {
  let running = null;
  return (...values) => {
    running?.abort();
    running = new AbortController();
    return work(running.signal, ...values);
  };
}

// ----------------------------------------------------------------- history

function changeHistory(change) {
  change();
  const ids = state.history.map((item) => item.item_id);
  history.replaceState(null, "", ids.length
    ? `#${new URLSearchParams(ids.map((id) => ["h", id]))}` : location.pathname + location.search);
  state.open = null;
  drawHistory();
  drawMap();
  return refresh();
}

function add(item) {
  changeHistory(() => {
    state.history = state.history.filter((each) => each.item_id !== item.item_id);
    state.history.push(item);
  });
  say(`${nameOf(item).name} was added.`);
}

function drawHistory() {
  const open = state.lists[state.open?.list]?.items.find((each) => each.item_id === state.open.id);
  const changes = new Map((open?.influences ?? []).map((each) => [each.item_id, each.change]));
  const largest = Math.max(0, ...[...changes.values()].map(Math.abs));
  $("history").replaceChildren(...state.history.slice().reverse().map((item) => {
    const change = changes.get(item.item_id);
    const { name } = nameOf(item);
    return el("li", {},
      words(item, { withGenres: false }),
      el("button", {
        class: "remove", "aria-label": `Remove ${name}`,
        click: () => {
          changeHistory(() => { state.history = state.history.filter((e) => e !== item); });
          $("search").focus();
          say(`${name} was removed.`);
        },
      }, "×"),
      change === undefined ? null : bar(change, largest),
      change === undefined ? null
        : el("span", { class: "hidden" }, `changes the score by ${signed(change)}`));
  }));
  $("clear").hidden = !state.history.length;
  $("starters").hidden = state.history.length > 0;
  $("bars-legend").hidden = !changes.size;
  if (open) $("bars-legend").textContent = `How each moves “${nameOf(open).name}”: right is up, left is down.`;
}

// ------------------------------------------------------------------ search

function search() {
  const input = $("search");
  const list = $("found");
  let items = [];
  let active = -1;

  const close = () => {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const choose = (place) => {
    if (!items[place]) return;
    add(items[place]);
    input.value = "";
    close();
    input.focus();
  };
  const mark = (place) => {
    active = place;
    [...list.children].forEach((node, n) => node.setAttribute("aria-selected", String(n === place)));
    input.setAttribute("aria-activedescendant", `found-${place}`);
    list.children[place]?.scrollIntoView({ block: "nearest" });
  };
  const look = newest(async (signal) => {
    const q = input.value.trim();
    if (!q) return close();
    const found = await trying(() => api("/api/search", { q, limit: 8, signal }));
    if (!found) return undefined;
    items = found;
    list.replaceChildren(...items.map((item, place) => el("li", {
      id: `found-${place}`, role: "option", "aria-selected": "false",
      mousedown: (event) => { event.preventDefault(); choose(place); },
    }, words(item))));
    if (!items.length) {
      list.append(el("li", { class: "none", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "No title like this"));
    }
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    active = -1;
    if (items.length) mark(0);
    return undefined;
  });
  input.addEventListener("input", look);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps && items.length && !list.hidden) {
      event.preventDefault();
      mark((active + steps[event.key] + items.length) % items.length);
    } else if (event.key === "Enter" && !list.hidden) {
      event.preventDefault();
      choose(active);
    } else if (event.key === "Escape") close();
  });
}

// --------------------------------------------------------- recommendations

function condition() {
  const parts = [];
  const quoted = [...state.genres].map((each) => `genres has "${each.replace(/["\\]/g, "\\$&")}"`);
  if (quoted.length) parts.push(`(${quoted.join(" or ")})`);
  if (state.from) parts.push(`year >= ${state.from}`);
  if (state.to) parts.push(`year <= ${state.to}`);
  return parts.join(" and ") || null;
}

const refresh = newest(async (signal) => {
  const ids = state.history.map((item) => item.item_id);
  const answers = await trying(() => Promise.all(state.models.map((model) => {
    const body = { history: ids, k: 10 };
    if (model.kind === "workdir") {
      Object.assign(body, { where: condition(), diversity: state.variety, explain: true });
    }
    return api("/api/recommend", { body, model: model.name, signal });
  })));
  if (!answers) return;
  state.lists = answers;
  const first = answers[0]?.items[0];
  if (!state.open && first && ids.length) state.open = { list: 0, id: first.item_id };
  drawLists();
  drawHistory();
  drawMap();
});

function drawLists() {
  const before = new Map([...document.querySelectorAll("#lists .item")]
    .map((node) => [node.dataset.key, node.getBoundingClientRect().top]));
  const focused = document.activeElement?.closest?.("#lists .item")?.dataset.key;
  $("lists").classList.toggle("two", state.lists.length > 1);
  $("lists").replaceChildren(...state.lists.map((answer, list) => {
    const others = new Set(state.lists.flatMap((each, n) => (n === list ? [] : each.items.map((e) => e.item_id))));
    const title = state.lists.length > 1 ? answer.model
      : state.history.length ? "You might like" : "Popular with everyone";
    return el("section", { class: "card list", "aria-label": `Recommended by ${answer.model}` },
      el("h2", {}, title, others.size ? el("span", { class: "muted" },
        `${answer.items.filter((e) => others.has(e.item_id)).length} of ${answer.items.length} in both`) : null),
      answer.items.length ? el("ol", { class: "items" }, ...answer.items.map((item) =>
        drawItem(item, list, others.size > 0 && !others.has(item.item_id))))
        : el("p", { class: "muted" }, "Nothing is left to recommend."),
      answer.unknown?.length ? el("p", { class: "muted note" },
        `This model does not know ${answer.unknown.length} of your history.`) : null);
  }));
  for (const node of document.querySelectorAll("#lists .item")) {
    const old = before.get(node.dataset.key);
    if (calm.matches || !before.size) continue;
    const shift = old === undefined ? 0 : old - node.getBoundingClientRect().top;
    if (old === undefined) node.animate([{ opacity: 0 }, { opacity: 1 }], 300);
    else if (Math.abs(shift) > 1) {
      node.animate([{ transform: `translateY(${shift}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
    }
  }
  if (focused) {
    document.querySelector(`#lists .item[data-key="${CSS.escape(focused)}"] .pick`)?.focus({ preventScroll: true });
  }
}

function drawItem(item, list, isAlone) {
  const { name } = nameOf(item);
  const isOpen = state.open?.list === list && state.open.id === item.item_id;
  const panel = `why-${list}-${item.item_id}`;
  return el("li", { class: isOpen ? "item open" : "item", "data-key": `${list} ${item.item_id}` },
    el("div", { class: "head" },
      el("button", {
        class: "pick", "aria-expanded": String(isOpen), "aria-controls": isOpen ? panel : null,
        click: () => {
          state.open = isOpen ? { list: -1 } : { list, id: item.item_id };
          drawLists();
          drawHistory();
        },
      }, swatch(item), words(item, { mark: isAlone ? "only here" : "" })),
      el("button", { class: "add", "aria-label": `Add ${name} to your history`, title: "Add to your history", click: () => add(item) }, "+")),
    isOpen ? drawWhy(item, list, panel) : null);
}

function drawWhy(item, list, id) {
  const influences = (item.influences ?? []).slice(0, 5);
  const largest = Math.max(0, ...influences.map((each) => Math.abs(each.change)));
  const similar = el("ul", { class: "chips", "aria-label": "More like this" });
  const { name } = nameOf(item);
  return el("div", { class: "why", id },
    influences.length ? el("table", {},
      el("caption", { class: "hidden" }, `Why ${name}: how each item of your history changes its score`),
      el("tbody", {}, ...influences.map((each) => el("tr", {},
        el("th", { scope: "row" }, nameOf({ title: each.title, metadata: {} }).name),
        el("td", {}, bar(each.change, largest)),
        el("td", { class: "number" }, signed(each.change))))))
      : el("p", { class: "muted" }, state.history.length ? "This model does not explain its lists."
        : "Without a history, the most popular items are listed."),
    el("div", { class: "row" },
      el("button", {
        click: async () => {
          const found = await trying(() => api("/api/similar", { item: item.item_id, k: 6, model: state.models[list].name }));
          similar.replaceChildren(...(found?.items ?? []).map(chip));
          say(`${found?.items.length ?? 0} similar items.`);
        },
      }, "More like this"),
      el("button", { click: () => showOnMap(item) }, "Show on the map")),
    similar);
}

function chip(item) {
  const { name, year } = nameOf(item);
  return el("li", {}, el("button", { title: "Add to your history", click: () => add(item) },
    name, year ? el("span", { class: "year" }, ` ${year}`) : null));
}

// -------------------------------------------------------------------- wishes

function drawWishes() {
  const counts = new Map();
  for (const item of state.catalog) {
    for (const genre of genresOf(item)) counts.set(genre, (counts.get(genre) ?? 0) + 1);
  }
  const common = [...counts].sort((a, b) => b[1] - a[1]).map(([name]) => name).slice(0, 24);
  state.hues = new Map(common.slice(0, HUES.length).map((name, n) => [name, HUES[n]]));
  state.hues.rank = new Map(common.map((name, n) => [name, n]));
  const columns = state.models[0]?.columns ?? {};
  const filters = state.models[0]?.kind === "workdir";
  $("wishes").hidden = !filters;
  $("wishes").open = matchMedia("(min-width: 52rem)").matches;
  $("genres").hidden = !common.length;
  $("genre-list").replaceChildren(...common.sort().map((genre) => el("button", {
    type: "button", "aria-pressed": String(state.genres.has(genre)),
    click: (event) => {
      const isOn = !state.genres.delete(genre);
      if (isOn) state.genres.add(genre);
      event.currentTarget.setAttribute("aria-pressed", String(isOn));
      wish();
    },
  }, genre)));
  $("years").hidden = !("year" in columns);
  const years = state.catalog.map((item) => item.metadata.year).filter(Boolean);
  if (years.length) {
    $("from").placeholder = Math.min(...years);
    $("to").placeholder = Math.max(...years);
  }
}

function wish() {
  const year = (input) => (input.value && input.validity.valid ? Number(input.value) : null);
  state.from = year($("from"));
  state.to = year($("to"));
  state.variety = Number($("variety").value);
  const text = state.variety ? `Variety ${Math.round(100 * state.variety)} of 100` : "Best matches only";
  $("variety").setAttribute("aria-valuetext", text);
  $("variety-text").textContent = text;
  state.open = null;
  refresh();
}

// ----------------------------------------------------------------------- map

const view = { x: 0, y: 0, zoom: 1, at: -1 };

/** Pixels of a unit of the map, which fills its frame, on either axis. */
function unit(box) {
  return [(box.width / 2 - 34) * view.zoom, (box.height / 2 - 24) * view.zoom];
}

function toScreen(point, box) {
  const [ux, uy] = unit(box);
  return [box.width / 2 + (point.x - view.x) * ux, box.height / 2 - (point.y - view.y) * uy];
}

function drawMap() {
  const canvas = $("map");
  const box = canvas.getBoundingClientRect();
  if (!box.width || !state.catalog.length) return;
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink");
  const paper = style.getPropertyValue("--wash");
  const seen = new Set(state.history.map((item) => item.item_id));
  const listed = new Set(state.lists.flatMap((each) => (seen.size ? each.items.map((e) => e.item_id) : [])));
  const taken = [];
  const labels = [];
  state.catalog.forEach((item, place) => {
    const [x, y] = toScreen(item, box);
    if (x < -20 || y < -20 || x > box.width + 20 || y > box.height + 20) return;
    const isSeen = seen.has(item.item_id);
    const isListed = listed.has(item.item_id);
    pen.beginPath();
    pen.arc(x, y, isSeen ? 7 : isListed ? 6 : place === view.at ? 6 : 3.6, 0, 7);
    pen.fillStyle = color(mainGenre(item), isSeen || isListed || place === view.at ? 1 : seen.size ? 0.45 : 0.75);
    pen.fill();
    if (isSeen || place === view.at) {
      pen.lineWidth = 2.5;
      pen.strokeStyle = ink;
      pen.stroke();
    }
    if (isListed && !isSeen) {
      pen.lineWidth = 2;
      pen.strokeStyle = style.getPropertyValue("--accent");
      pen.stroke();
    }
    labels.push({ item, x, y, rank: place === view.at ? -2 : isSeen || isListed ? -1 : place });
  });
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  for (const { item, x, y, rank } of labels.sort((a, b) => a.rank - b.rank)) {
    const { name } = nameOf(item);
    const most = box.width < 600 ? 20 : 30;
    const text = name.length > most ? `${name.slice(0, most - 2)}…` : name;
    const width = pen.measureText(text).width;
    const left = Math.max(4, x + 10 + width > box.width ? x - 10 - width : x + 10);
    const mine = [left - 3, y - 9, left + width + 3, y + 9];
    if (taken.some((t) => mine[0] < t[2] && mine[2] > t[0] && mine[1] < t[3] && mine[3] > t[1])) continue;
    taken.push(mine);
    pen.lineWidth = 3;
    pen.strokeStyle = paper;
    pen.strokeText(text, left, y);
    pen.fillStyle = ink;
    pen.fillText(text, left, y);
    if (taken.length > 60) break;
  }
}

function goTo(place, { center = false } = {}) {
  const item = state.catalog[place];
  view.at = item ? place : -1;
  $("map-item").hidden = !item;
  if (item) {
    if (center) Object.assign(view, { x: item.x, y: item.y, zoom: Math.max(view.zoom, 3) });
    const box = $("map").getBoundingClientRect();
    const [x, y] = toScreen(item, box);
    if (x < 0 || y < 0 || x > box.width || y > box.height) Object.assign(view, { x: item.x, y: item.y });
    $("map-item").replaceChildren(words(item), el("div", { class: "row" },
      el("button", { class: "solid", click: () => add(item) }, "Add to your history"),
      el("button", { "aria-label": "Close", click: () => { goTo(-1); $("map").focus(); } }, "Close")));
    const { name, year } = nameOf(item);
    $("map-live").textContent = `${name}${year ? `, ${year}` : ""}. ${genresOf(item).join(", ")}`;
  }
  drawMap();
}

async function showOnMap(item) {
  const place = state.catalog.findIndex((each) => each.item_id === item.item_id);
  if (place < 0) {
    await trying(() => { throw new Error(`${nameOf(item).name} is not among the ${state.catalog.length} most popular items, which the map shows.`); });
    return;
  }
  openTab("map");
  goTo(place, { center: true });
  $("map").focus();
}

function zoom(factor, x = view.x, y = view.y) {
  const next = Math.min(40, Math.max(1, view.zoom * factor));
  const kept = view.zoom / next;
  Object.assign(view, { x: x + (view.x - x) * kept, y: y + (view.y - y) * kept, zoom: next });
  if (next === 1) Object.assign(view, { x: 0, y: 0 });
  drawMap();
}

function map() {
  const canvas = $("map");
  const box = () => canvas.getBoundingClientRect();
  const nearest = (x, y, most = 18) => {
    let best = -1;
    let least = most * most;
    state.catalog.forEach((item, place) => {
      const [px, py] = toScreen(item, box());
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    });
    return best;
  };
  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const old = fingers.get(event.pointerId);
    if (!old) { canvas.title = ""; return; }
    const [ux, uy] = unit(box());
    const dx = event.clientX - old.clientX;
    const dy = event.clientY - old.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      const other = a === old ? b : a;
      const span = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
      view.zoom = Math.min(40, Math.max(1, (view.zoom * span(event)) / Math.max(1, span(old))));
    }
    view.x -= dx / ux / fingers.size;
    view.y += dy / uy / fingers.size;
    fingers.set(event.pointerId, event);
    drawMap();
  });
  const up = (event) => {
    if (fingers.delete(event.pointerId) && moved < 6 && event.type === "pointerup") {
      goTo(nearest(event.clientX - box().left, event.clientY - box().top));
    }
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [ux, uy] = unit(box());
    const { left, top, width, height } = box();
    zoom(Math.exp(-event.deltaY / 300),
      view.x + (event.clientX - left - width / 2) / ux, view.y - (event.clientY - top - height / 2) / uy);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in ways) walk(ways[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") zoom(0);
    else if (event.key === "Enter" && view.at >= 0) add(state.catalog[view.at]);
    else if (event.key === "Escape") goTo(-1);
    else return;
    event.preventDefault();
  });
  // To the nearest item within 45 degrees of the way that is pressed.
  const walk = ([wx, wy]) => {
    if (view.at < 0) { goTo(Math.max(0, nearest(box().width / 2, box().height / 2, 1e4))); return; }
    const [x, y] = toScreen(state.catalog[view.at], box());
    let best = -1;
    let least = Infinity;
    state.catalog.forEach((item, place) => {
      const [px, py] = toScreen(item, box());
      const along = (px - x) * wx + (py - y) * wy;
      const aside = Math.abs((px - x) * wy) + Math.abs((py - y) * wx);
      if (place !== view.at && along > 0.5 && aside <= along && along + aside < least) [best, least] = [place, along + aside];
    });
    if (best >= 0) goTo(best);
  };
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("zoom-all").addEventListener("click", () => zoom(0));
  new ResizeObserver(drawMap).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawLists(); drawLegend(); drawMap(); });
}

function drawLegend() {
  const named = [...state.hues.keys()];
  $("map-legend").replaceChildren(...named.map((genre) => {
    const dot = el("i", { "aria-hidden": "true" });
    dot.style.background = color(genre);
    return el("li", {}, dot, genre);
  }), el("li", { class: "muted" }, "Ringed: your history and what is recommended"));
}

// --------------------------------------------------------------------- users

const lookUp = newest(async (signal) => {
  const found = await trying(() => api("/api/users", { q: $("user").value.trim(), limit: 24, signal }));
  if (!found) return;
  $("user-list").replaceChildren(...found.map((user) => el("li", {}, el("button", {
    "aria-pressed": "false",
    click: (event) => {
      for (const node of $("user-list").querySelectorAll("button")) node.setAttribute("aria-pressed", String(node === event.currentTarget));
      showUser(user.user_id);
    },
  }, user.user_id, el("span", { class: "year" }, ` ${user.length}`)))));
  if (!found.length) $("user-list").append(el("li", { class: "muted" }, "No user like this"));
});

function drawBefore(user) {
  return el("section", { class: "card wide" },
    el("h2", {}, "Before that"),
    el("p", { class: "muted" }, `${figures.format(user.length)} items, newest first`),
    el("ul", { class: "plain" }, ...user.history.slice(-20).reverse().map((item) => el("li", {}, words(item)))),
    user.length > 20 ? el("p", { class: "muted note" }, `and ${figures.format(user.length - 20)} earlier`) : null,
    el("button", {
      class: "solid", click: () => {
        changeHistory(() => { state.history = user.history.slice(-40); });
        openTab("list");
      },
    }, "Take over this history"));
}

async function showUser(id) {
  const answers = await trying(() => Promise.all(state.models.filter((each) => each.has_users)
    .map(async (model) => [model, await api(`/api/users/${encodeURIComponent(id)}`, { model: model.name })])));
  if (!answers) return;
  $("user-view").classList.toggle("two", answers.length > 1);
  $("user-view").replaceChildren(...answers.map(([model, user]) => {
    const candidates = model.num_items - user.length;
    return el("section", { class: "card" },
      el("h2", {}, answers.length > 1 ? `User ${user.user_id}, ${model.name}` : `User ${user.user_id}`),
      user.next.length ? el("p", { class: "muted" },
        `What they did next was held out from training (${user.held_out}). The model ranked it among ${figures.format(candidates)} items:`)
        : el("p", { class: "muted" }, "Nothing of this user was held out from training."),
      ...user.next.slice(0, 10).map((item) => el("div", { class: "next" },
        el("span", { class: "rank" }, `#${figures.format(item.rank)}`), words(item))));
  }), drawBefore(answers[0][1]));
  say(`User ${id}.`);
}

// ---------------------------------------------------------------------- tabs

const TABS = ["list", "map", "users"];

function openTab(name) {
  for (const each of TABS) {
    const tab = $(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    $(`view-${each}`).hidden = each !== name;
  }
  if (name === "map") drawMap();
  if (name === "users" && !$("user-list").children.length) lookUp();
}

function tabs() {
  TABS.forEach((name) => {
    $(`tab-${name}`).addEventListener("click", () => openTab(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const shown = TABS.filter((each) => !$(`tab-${each}`).hidden);
      const next = shown[(shown.indexOf(name) + step + shown.length) % shown.length];
      openTab(next);
      $(`tab-${next}`).focus();
    });
  });
}

// --------------------------------------------------------------------- start

async function start() {
  state.models = await api("/api/models");
  const [first, ...others] = state.models;
  const count = first.num_items ? `${first.num_items.toLocaleString()} items` : "an export";
  $("about").textContent = others.length ? `${first.name} beside ${others[0].name}` : `${first.name}, ${count}`;
  $("tab-users").hidden = !first.has_users;
  if (first.num_items) {
    state.catalog = await api("/api/map", { limit: 500 });
  } else $("tab-map").hidden = true;
  drawWishes();
  drawLegend();
  $("starter-list").replaceChildren(...state.catalog.slice(0, 10).map(chip));
  const ids = new URLSearchParams(location.hash.slice(1)).getAll("h");
  const found = await Promise.allSettled(ids.slice(0, 100).map((id) => api(`/api/items/${encodeURIComponent(id)}`)));
  state.history = found.filter((each) => each.status === "fulfilled").map((each) => each.value);
  drawHistory();
  await refresh();
  document.body.dataset.ready = "true";
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("token-form").hidden = true;
  trying(start);
});
$("clear").addEventListener("click", () => { changeHistory(() => { state.history = []; }); $("search").focus(); });
$("variety").addEventListener("input", wish);
for (const id of ["from", "to"]) $(id).addEventListener("change", wish);
$("user").addEventListener("input", lookUp);
search();
tabs();
map();
trying(start);
