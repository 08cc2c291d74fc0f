// Draws the charts and the map of the report with Bokeh, from the two data blocks of the page.
// Prompts are anyone's text: they reach the page through textContent only.
"use strict";

const BLUE = [37, 99, 235], GREY = [148, 163, 184], ORANGE = [234, 88, 12];
const FAINT = [...GREY, 0.35]; // for points that are there only as a background
const PALETTE = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [213, 94, 0],
                 [86, 180, 233]]; // told apart with any colour vision (Okabe and Ito 2008)
const LISTED = 1000; // sources or labels that can be picked out
const SINGLE = 10000; // points drawn one by one; more of them are drawn as pixels
const REACH = 4; // pixels around the pointer in which a point is looked for
const COLUMNS = [["x", Float32Array], ["y", Float32Array], ["weight", Float32Array],
                 ["count", Uint32Array], ["source", Uint16Array], ["label", Uint16Array],
                 ["heldout", Uint8Array], ["region", Uint8Array],
                 ["id", Uint8Array]]; // as report/map.py packs them; of an id 16 bytes
const ID = 16;
const CHOICES = 40; // names of a filter
const FOUND = 200; // prompts that are listed of those found

const byId = (id) => document.getElementById(id);
const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
const FONT = 12; // pixels, of the names of regions
const RINGED = 2000; // prompts found that get a ring, at most
const font = () => getComputedStyle(document.documentElement).getPropertyValue("--font").trim();
const page = () => getComputedStyle(document.documentElement).getPropertyValue("--page").trim();
const css = ([r, g, b, alpha = 1]) => `rgba(${r},${g},${b},${alpha})`;
const packed = ([r, g, b, alpha = 1]) =>
  ((r << 24) | (g << 16) | (b << 8) | Math.round(255 * alpha)) >>> 0;
const numbers = (values) => Float64Array.from(values, (value) => value ?? NaN); // null: a gap
const short = (value) => Number(value.toPrecision(4)).toLocaleString("en");
const figures = [];

function element(name, text, style = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.assign(made.style, style);
  return made;
}

function tooltip(lines, maxWidth = "none") {
  const box = element("div", "", { maxWidth, overflowWrap: "anywhere" });
  box.className = "tip";
  for (const [line, bold] of lines) {
    box.append(element("div", line, { fontWeight: bold ? "600" : "400", unicodeBidi: "isolate" }));
  }
  return box;
}

function figure(options) {
  const made = Bokeh.Plotting.figure({
    sizing_mode: "stretch_width", background_fill_alpha: 0, border_fill_alpha: 0,
    outline_line_color: null, min_border_right: 12, ...options,
  });
  figures.push(made);
  return made;
}

function paint(fig) { // in the colours of the page, light or dark
  const color = ink();
  for (const axis of [...fig.below, ...fig.left]) {
    if (!("axis_label" in axis)) continue;
    axis.setv({ axis_line_color: color, major_tick_line_color: color, minor_tick_line_color: null,
                major_label_text_color: color, axis_label_text_color: color,
                axis_label_text_font_style: "normal" });
  }
  for (const grid of fig.center) {
    if ("grid_line_color" in grid) grid.setv({ grid_line_color: css(GREY), grid_line_alpha: 0.25 });
  }
}

function hover(renderers, lines, mode = "mouse") {
  const tooltips = (source, { index, x, y }) => {
    const found = lines(source, index, x, y);
    return found && tooltip(found, "min(20rem, 70vw)");
  };
  return new Bokeh.HoverTool({ tooltips, renderers, mode, limit: 1, show_arrow: false });
}

function legend(list, entries) {
  list.className = "legend";
  list.replaceChildren(...entries.map(([name, color]) => {
    const entry = element("li", "");
    entry.append(element("i", "", { background: color }), element("span", name));
    return entry;
  }));
  return list;
}

async function chart(spec) {
  const fig = figure({
    height: 260, tools: "", toolbar_location: null,
    x_axis_type: spec.log.includes("x") ? "log" : "auto",
    y_axis_type: spec.log.includes("y") ? "log" : "auto",
    x_axis_label: spec.x, y_axis_label: spec.y,
  });
  const field = (name) => ({ field: name });
  const said = (name, x, y) => [[name, true], [`${spec.x}: ${short(x)}`], [`${spec.y}: ${short(y)}`]];
  for (const { color, edges, counts } of spec.bars) {
    const data = { left: edges.slice(0, -1), right: edges.slice(1), top: counts };
    const source = new Bokeh.ColumnDataSource({ data });
    const drawn = fig.quad(field("left"), field("right"), 0, field("top"), {
      source, fill_color: color, fill_alpha: 0.85, line_color: null });
    fig.add_tools(hover([drawn], ({ data: d }, i) => [
      [`${spec.x}: ${short(d.left[i])} to ${short(d.right[i])}`], [`${spec.y}: ${short(d.top[i])}`]]));
  }
  for (const { name, color, x, y, width } of spec.lines) {
    const source = new Bokeh.ColumnDataSource({ data: { x: numbers(x), y: numbers(y) } });
    fig.line(field("x"), field("y"), { source, line_color: color, line_width: width });
    const dots = fig.scatter(field("x"), field("y"), { source, size: 8, alpha: 0 });
    fig.add_tools(hover([dots], ({ data: d }, i) => said(name, d.x[i], d.y[i])));
  }
  for (const { name, color, x, y, low, high, shift } of spec.points) {
    const at = x.map((value) => value + shift);
    const source = new Bokeh.ColumnDataSource({
      data: { x, at, y: numbers(y), low: numbers(low), high: numbers(high) } });
    fig.segment(field("at"), field("low"), field("at"), field("high"), {
      source, line_color: color, line_width: 2 });
    const dots = fig.scatter(field("at"), field("y"), {
      source, size: 9, fill_color: color, line_color: null });
    fig.add_tools(hover([dots], ({ data: d }, i) => [...said(name, d.x[i], d.y[i]),
      [`95% interval ${short(d.low[i])} to ${short(d.high[i])}`]]));
  }
  for (const at of spec.marks) {
    fig.add_layout(new Bokeh.Span({ location: at, dimension: "height", line_dash: "dashed",
                                    line_color: css(ORANGE), line_width: 1.5 }));
  }
  if (spec.ticks.length) fig.below[0].ticker = new Bokeh.FixedTicker({ ticks: spec.ticks });
  const series = [...spec.lines, ...spec.points];
  const entries = series.length > 1 ? series.map(({ name, color }) => [name, color]) : [];
  byId(spec.id).before(legend(element("ul", ""), entries));
  paint(fig);
  await Bokeh.Plotting.show(fig, byId(spec.id));
}

async function unpacked(id, rows) {
  const text = byId(id).textContent;
  const zipped = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text)
    : Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const columns = {};
  let offset = 0;
  for (const [name, type] of COLUMNS) {
    columns[name] = new type(buffer, offset, rows * (name === "id" ? ID : 1));
    offset += columns[name].byteLength;
  }
  const texts = new TextDecoder().decode(new Uint8Array(buffer, offset));
  return { ...columns, texts: texts.split("\n"), rows };
}

function mixed(weight) { // blue below the mean weight, grey at it, orange above
  const share = Math.max(-1, Math.min(1, Math.log2(weight) / 1.5));
  const end = share < 0 ? BLUE : ORANGE;
  return GREY.map((from, i) => Math.round(from + (end[i] - from) * Math.abs(share)));
}

// What each way of colouring gives a row, its legend, and the names of which one can be picked out.
// Names are listed most frequent first.
function colorings(points, names) {
  const heldout = ["held out, never drawn", FAINT];
  const named = (column, list) => {
    const all = list.map((name) => name || "(none)");
    return {
      names: all,
      of: (i, only) => {
        const number = points[column][i];
        if (only >= 0) return number === only ? ORANGE : FAINT;
        return PALETTE[number] ?? FAINT;
      },
      legend: (only) => (only >= 0 ? [[all[only], ORANGE], ["all others", FAINT]] : [
        ...PALETTE.slice(0, all.length).map((color, i) => [all[i], color]),
        ...(all.length > PALETTE.length ? [[`${all.length - PALETTE.length} more`, FAINT]] : [])]),
    };
  };
  return {
    weight: {
      names: [],
      of: (i) => (points.heldout[i] ? FAINT : mixed(points.weight[i])),
      legend: () => [["crowded: ⅓ of the mean weight or less", mixed(1 / 3)], ["½", mixed(1 / 2)],
                     ["mean weight", GREY], ["2 ×", mixed(2)],
                     ["isolated: 3 × or more", mixed(3)], heldout],
    },
    region: named("region", names.regions),
    source: named("source", names.sources),
    label: named("label", names.labels),
    split: {
      names: [],
      of: (i) => (points.heldout[i] ? ORANGE : BLUE),
      legend: () => [["training", BLUE], ["held out", ORANGE]],
    },
  };
}

function bounds(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const margin = (high - low) * 0.03 || 1;
  return [low - margin, high + margin];
}

// For each cell of a grid the last row in it (-1: none), those that are not faint before others, and
// its colour, the stronger the more rows are in the cell.
function raster(points, colors, visible, [x0, x1, y0, y1], width, height) {
  const owner = new Int32Array(width * height).fill(-1);
  const rows = new Uint16Array(width * height);
  const across = width / (x1 - x0), up = height / (y1 - y0);
  for (let i = 0; i < points.rows; i++) {
    if (!visible[i]) continue;
    const column = Math.floor((points.x[i] - x0) * across);
    const line = Math.floor((points.y[i] - y0) * up);
    if (column < 0 || column >= width || line < 0 || line >= height) continue;
    const cell = line * width + column;
    if (owner[cell] < 0 || (colors[i] & 255) >= (colors[owner[cell]] & 255)) owner[cell] = i;
    if (rows[cell] < 65535) rows[cell]++;
  }
  const bytes = new Uint8Array(4 * width * height);
  const view = new DataView(bytes.buffer);
  for (let cell = 0; cell < owner.length; cell++) {
    if (owner[cell] < 0) continue;
    const color = colors[owner[cell]];
    const alpha = Math.min(1, 0.6 + 0.16 * Math.log2(rows[cell])) * (color & 255);
    view.setUint32(4 * cell, (color & 0xffffff00) | alpha); // the order of canvas
  }
  return { owner, image: new Uint32Array(bytes.buffer) };
}

function nearestCell({ owner, width, height, side }, column, line) {
  const reach = Math.ceil(REACH / side);
  let best = -1, least = Infinity;
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const x = column + dx, y = line + dy, distance = dx * dx + dy * dy;
      if (x < 0 || x >= width || y < 0 || y >= height || distance >= least) continue;
      const row = owner[y * width + x];
      if (row >= 0) [best, least] = [row, distance];
    }
  }
  return best;
}

function nearestPoint(points, visible, x, y, perX, perY) { // within the reach of a finger
  let best = -1, least = (4 * REACH) ** 2;
  for (let i = 0; i < points.rows; i++) {
    if (!visible[i]) continue;
    const distance = ((points.x[i] - x) * perX) ** 2 + ((points.y[i] - y) * perY) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

function described(points, names, row) {
  const split = points.heldout[row] ? "held out, never drawn"
    : `weight ${points.weight[row].toFixed(2)} × mean`;
  const id = idOf(points, row).slice(0, 8);
  const label = names.labels[points.label[row]];
  return [[points.texts[row], true], [`${split} · ${points.count[row]} occurrence${points.count[row] === 1 ? "" : "s"}`],
          [[names.sources[points.source[row]], label, names.regions[points.region[row]], `id ${id}…`]
            .filter(Boolean).join(" · ")]];
}

function idOf({ id }, row) {
  return [...id.subarray(ID * row, ID * (row + 1))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// What search, lasso and box give: a Uint8Array of 1 for each row that is meant.
function searched(points, names, query) {
  const wanted = query.toLowerCase(), found = new Uint8Array(points.rows);
  points.lower ??= points.texts.join("\n").toLowerCase(); // one search in a million texts
  points.starts ??= lineStarts(points.lower, points.rows);
  const { lower, starts } = points;
  for (let at = lower.indexOf(wanted), row = 0; at >= 0; at = lower.indexOf(wanted, starts[row])) {
    let past = points.rows; // the row lies before it
    while (past - row > 1) {
      const middle = (row + past) >> 1;
      if (starts[middle] <= at) row = middle; else past = middle;
    }
    found[row] = 1;
    if (++row === points.rows) break;
  }
  for (const [column, list] of [["source", names.sources], ["label", names.labels],
                                ["region", names.regions]]) {
    const meant = list.map((name) => name.toLowerCase().includes(wanted));
    if (!meant.includes(true)) continue;
    for (let i = 0; i < points.rows; i++) if (meant[points[column][i]]) found[i] = 1;
  }
  if (/^[0-9a-f]{6,}…?$/.test(wanted)) {
    const start = wanted.replace("…", "");
    const first = parseInt(start.slice(0, 2), 16);
    for (let i = 0; i < points.rows; i++) {
      if (points.id[ID * i] === first && idOf(points, i).startsWith(start)) found[i] = 1;
    }
  }
  return found;
}

function lineStarts(text, rows) {
  const starts = new Uint32Array(rows);
  for (let row = 1; row < rows; row++) starts[row] = text.indexOf("\n", starts[row - 1]) + 1;
  return starts;
}

function enclosed(points, { type, x, y, x0, x1, y0, y1 }) {
  const [xs, ys] = type === "rect" ? [[x0, x1, x1, x0], [y0, y0, y1, y1]] : [x, y];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const found = new Uint8Array(points.rows);
  for (let i = 0; i < points.rows; i++) {
    const px = points.x[i], py = points.y[i];
    if (px < left || px > right || py < low || py > high) continue;
    let inside = 0; // how often a ray to the right crosses the outline
    for (let a = 0, b = xs.length - 1; a < xs.length; b = a++) {
      if ((ys[a] > py) !== (ys[b] > py)
          && px < (xs[b] - xs[a]) * (py - ys[a]) / (ys[b] - ys[a]) + xs[a]) inside ^= 1;
    }
    found[i] = inside;
  }
  return found;
}

function copied(text) { // where a page is a file, browsers offer nothing newer
  const area = element("textarea", text, { position: "fixed", opacity: 0 });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function saved(text, name) {
  const link = element("a", "");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

// Check boxes for the commonest names of labels, sources and regions; `changed` gets what is ticked.
function filters(box, points, names, changed) {
  const ticked = { region: new Set(), label: new Set(), source: new Set() };
  const lists = { region: names.regions, label: names.labels, source: names.sources };
  for (const [column, list] of Object.entries(lists)) {
    if (list.length < 2) continue;
    const counts = new Uint32Array(Math.max(256, list.length));
    for (const number of points[column]) counts[number]++;
    const group = element("fieldset", "");
    group.append(element("legend", column));
    list.slice(0, CHOICES).forEach((name, number) => {
      const tick = Object.assign(element("input", ""), { type: "checkbox" });
      const label = element("label", "");
      label.append(tick, ` ${name || "(none)"} (${counts[number].toLocaleString("en")})`);
      tick.addEventListener("change", () => {
        ticked[column][tick.checked ? "add" : "delete"](number);
        changed(ticked);
      });
      group.append(label);
    });
    if (list.length > CHOICES) group.append(element("span", `${list.length - CHOICES} more: search them`));
    box.append(group);
  }
  box.parentElement.hidden = !box.children.length;
}

// How wide each text is on the map, in pixels, from the middle to an end.
function halfWidths(texts) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `bold ${FONT}px ${font()}`;
  return texts.map((text) => pen.measureText(text).width / 2 + 3); // and the padding
}

// The names of regions at their places, the larger before those that they would cover; moved inwards
// where the sides of the map would cut them.
function placed(names, halves, fig, view) {
  const perX = fig.inner_width / (view[1] - view[0]), perY = fig.inner_height / (view[3] - view[2]);
  const kept = [];
  names.places.forEach(([x, y], number) => {
    const [at, py] = [(x - view[0]) * perX, (y - view[2]) * perY];
    const half = halves[number], last = fig.inner_width - half;
    const px = Math.min(Math.max(at, half), last);
    const fits = at > 0 && at < fig.inner_width && last > half && py > 9 && py < fig.inner_height - 9;
    const free = kept.every((one) => Math.abs(one.py - py) > 16 || Math.abs(one.px - px) > one.half + half);
    if (fits && free) kept.push({ number, px, py, half, x: view[0] + px / perX, y });
  });
  return { x: kept.map((one) => one.x), y: kept.map((one) => one.y),
           text: kept.map((one) => names.regions[one.number]) };
}

function wheelAfterClick(box) { // until then the wheel scrolls the page past the map
  let clicked = false;
  box.addEventListener("pointerdown", () => { clicked = true; }, true);
  box.addEventListener("pointerleave", () => { clicked = false; });
  box.addEventListener("wheel", (event) => { if (!clicked) event.stopPropagation(); }, true);
}

async function map(names) {
  const points = await unpacked("map-data", names.rows);
  const ways = colorings(points, names);
  const colors = new Uint32Array(points.rows);
  const visible = new Uint8Array(points.rows).fill(1); // what the filters let through
  let chosen = null; // what search, lasso or box mean
  const [x, y] = [bounds(points.x), bounds(points.y)];
  const fig = figure({
    height: Math.min(620, Math.round(window.innerHeight * 0.6)),
    x_range: new Bokeh.Range1d({ start: x[0], end: x[1] }),
    y_range: new Bokeh.Range1d({ start: y[0], end: y[1] }),
    x_axis_location: null, y_axis_location: null, min_border: 0, min_border_right: 0,
    tools: "pan,wheel_zoom,box_zoom,reset", active_scroll: "wheel_zoom",
    toolbar_location: "above", lod_threshold: null,
  });
  fig.toolbar.logo = null;
  for (const grid of fig.center) grid.visible = false;
  const singles = new Bokeh.ColumnDataSource({ data: { x: [], y: [], color: [], row: [] } });
  const dots = fig.scatter({ field: "x" }, { field: "y" }, { source: singles, size: 6,
    fill_color: { field: "color" }, line_color: null, fill_alpha: 0.8 });
  const pixels = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], w: [], h: [] } });
  const cells = fig.image_rgba({ image: { field: "image" }, x: { field: "x" }, y: { field: "y" },
    dw: { field: "w" }, dh: { field: "h" }, source: pixels });
  const halves = halfWidths(names.regions);
  const named = new Bokeh.ColumnDataSource({ data: { x: [], y: [], text: [] } });
  const words = fig.text({ field: "x" }, { field: "y" }, { field: "text" }, { source: named,
    text_align: "center", text_baseline: "middle", text_font_size: `${FONT}px`,
    text_font: font(), text_font_style: "bold",
    padding: 2, border_radius: 3, border_line_color: null, background_fill_alpha: 0.72 });
  const ringed = new Bokeh.ColumnDataSource({ data: { x: [], y: [] } });
  const rings = fig.scatter({ field: "x" }, { field: "y" }, { source: ringed, size: 9,
    fill_color: null, line_width: 1.5 }); // one of a million is hard to see without
  fig.add_tools(new Bokeh.LassoSelectTool({ renderers: [], continuous: false }),
                new Bokeh.BoxSelectTool({ renderers: [], continuous: false }));
  let shown = null;

  const atDot = (source, i) => described(points, names, source.data.row[i]);
  const atPixel = (_, __, px, py) => {
    const { view, width, height } = shown;
    const column = Math.floor((px - view[0]) / (view[1] - view[0]) * width);
    const line = Math.floor((py - view[2]) / (view[3] - view[2]) * height);
    const row = nearestCell(shown, column, line);
    return row < 0 ? null : described(points, names, row);
  };
  fig.add_tools(hover([dots], atDot), hover([cells], atPixel));

  fig.on_event("tap", ({ x: px, y: py }) => { // also for fingers, and to be copied
    const { x_range, y_range } = fig;
    const row = nearestPoint(points, visible, px, py, fig.inner_width / (x_range.end - x_range.start),
                             fig.inner_height / (y_range.end - y_range.start));
    byId("map-prompt").replaceChildren(...(row < 0 ? [] : [tooltip(described(points, names, row))]));
  });

  function draw() {
    const { x_range, y_range } = fig;
    const view = [x_range.start, x_range.end, y_range.start, y_range.end];
    const rows = [], found = [];
    let count = 0;
    for (let i = 0; i < points.rows; i++) {
      const [px, py] = [points.x[i], points.y[i]];
      if (!visible[i] || px < view[0] || px > view[1] || py < view[2] || py > view[3]) continue;
      if (++count <= SINGLE) rows.push(i);
      if (chosen && chosen[i] && found.length <= RINGED) found.push(i);
    }
    const few = count <= SINGLE;
    rows.sort((a, b) => (colors[a] & 255) - (colors[b] & 255)); // the faint below the others
    const pick = (column) => Float64Array.from(few ? rows : [], (i) => column[i]);
    if (!few) { // 3 pixels a prompt while they are few, 1 for a million
      const side = Math.max(1, Math.round(3 - Math.log10(count / SINGLE)));
      const width = Math.max(1, Math.round(fig.inner_width / side));
      const height = Math.max(1, Math.round(fig.inner_height / side));
      const made = raster(points, colors, visible, view, width, height);
      const image = Object.assign(made.image, { dimension: 2, shape: [height, width] });
      shown = { owner: made.owner, view, width, height, side };
      pixels.data = { image: [image], x: [view[0]], y: [view[2]],
                      w: [view[1] - view[0]], h: [view[3] - view[2]] };
    }
    dots.visible = few;
    cells.visible = !few;
    singles.data = { x: pick(points.x), y: pick(points.y), row: few ? rows : [],
                     color: few ? rows.map((i) => css(colorOf(i, picked()))) : [] };
    const rung = found.length <= RINGED ? found : []; // more would hide one another
    ringed.data = { x: Float64Array.from(rung, (i) => points.x[i]),
                    y: Float64Array.from(rung, (i) => points.y[i]) };
    rings.glyph.line_color = ink();
    byId("map").dataset.rings = rung.length;
    named.data = placed(names, halves, fig, view);
    words.glyph.setv({ text_color: ink(), background_fill_color: page() });
    byId("map").dataset.drawn = few ? "points" : "pixels";
  }

  let waiting = false;
  function later() { // many changes of the ranges, one drawing
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  const select = byId("map-color"), only = byId("map-only");
  const picked = () => Number(only.value || -1); // number of the one name that is shown, -1: all
  const colorOf = (i, name) =>
    (chosen && !chosen[i] ? FAINT : ways[select.value].of(i, name));
  function recolor() {
    const way = ways[select.value], name = picked();
    for (let i = 0; i < points.rows; i++) colors[i] = packed(colorOf(i, name));
    legend(byId("map-legend"), way.legend(name).map(([text, color]) => [text, css(color)]));
  }
  function offer() { // the names of the way of colouring that was chosen
    const listed = ways[select.value].names.slice(0, LISTED);
    const all = Object.assign(element("option", "all"), { value: -1 });
    only.replaceChildren(all, ...listed.map((name, value) =>
      Object.assign(element("option", name), { value })));
    only.hidden = listed.length < 2;
  }
  const search = byId("map-search");
  const rowsFound = () => {
    const rows = [];
    for (let i = 0; i < points.rows; i++) if (chosen[i] && visible[i]) rows.push(i);
    return rows;
  };
  function choose(found) { // null: nothing in particular
    chosen = found;
    const rows = found ? rowsFound() : [];
    byId("map-list").hidden = !found;
    byId("map-count").textContent = `${rows.length.toLocaleString("en")} prompts`
      + (rows.length > FOUND ? `, the first ${FOUND} of them:` : "");
    byId("map-found").replaceChildren(...rows.slice(0, FOUND).map((row) => {
      const entry = element("li", points.texts[row]);
      entry.addEventListener("click", () =>
        byId("map-prompt").replaceChildren(tooltip(described(points, names, row))));
      return entry;
    }));
    recolor();
    draw();
  }
  function filtered(ticked) {
    const active = Object.entries(ticked).filter(([, numbers]) => numbers.size);
    for (let i = 0; i < points.rows; i++) {
      visible[i] = active.every(([column, numbers]) => numbers.has(points[column][i])) ? 1 : 0;
    }
    byId("map-filtered").textContent = active.length ? " (some prompts are hidden)" : "";
    choose(chosen);
  }

  offer();
  recolor();
  await Bokeh.Plotting.show(fig, byId("map"));
  for (const range of [fig.x_range, fig.y_range]) range.change.connect(later);
  fig.properties.inner_width.change.connect(later);
  fig.properties.inner_height.change.connect(later);
  select.addEventListener("change", () => { offer(); recolor(); draw(); });
  only.addEventListener("change", () => { recolor(); draw(); });
  fig.on_event("selectiongeometry", ({ geometry, final }) => {
    if (!final) return;
    search.value = "";
    choose(enclosed(points, geometry));
  });
  let typing = 0;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    const query = search.value.trim().replace(/\s+/g, " "); // as the texts of the map are
    typing = setTimeout(() => choose(query ? searched(points, names, query) : null), 150);
  });
  const told = (row) => ({ ...(names.counted && { row }), id: idOf(points, row), text: points.texts[row],
    weight: points.heldout[row] ? null : points.weight[row], label: names.labels[points.label[row]],
    source: names.sources[points.source[row]], region: names.regions[points.region[row]] });
  byId("map-copy").addEventListener("click", () =>
    copied(rowsFound().map((row) => idOf(points, row)).join("\n")));
  byId("map-save").addEventListener("click", () => saved(rowsFound().map((row) =>
    JSON.stringify(told(row)) + "\n").join(""),
    "prompts.jsonl"));
  byId("map-clear").addEventListener("click", () => { search.value = ""; choose(null); });
  filters(document.querySelector("#map-filters .filters"), points, names, filtered);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  wheelAfterClick(byId("map"));
  draw();
}

async function start() {
  Bokeh.set_log_level("warn");
  const { charts, map: names } = JSON.parse(byId("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => figures.forEach(paint));
  if (names) await map(names);
  for (const spec of charts) await chart(spec);
  document.documentElement.dataset.ready = "yes";
}

start();
