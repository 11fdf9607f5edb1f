"use strict";
// Draws the page out of the JSON in it. Text reaches the page as text nodes alone, never as markup.

const $ = (id) => document.getElementById(id);
addEventListener("error", (event) => {
  $("error").hidden = false;
  $("error").textContent = `This page failed: ${event.message}`;
});

const data = JSON.parse($("data").textContent);
const {tokens, layers, pieces, shape} = data;
const N = tokens.length, L = shape.layers, H = shape.heads;
const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = {layer: 0, head: 0, token: N - 1, shade: "top"};

// --- Attention: 16 bits a weight, 65535 is 1; rows of a causal one end at their own token.

const weights = decodeWeights(data.attention);

function decodeWeights(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({length: bytes.length / 2}, (_, i) => view.getUint16(2 * i, true));
}

function weight(layer, head, from, to) {
  const matrix = layer * H + head;
  if (!data.causal) return weights[(matrix * N + from) * N + to] / 65535;
  if (to > from) return 0;
  return weights[matrix * (N * (N + 1) / 2) + from * (from + 1) / 2 + to] / 65535;
}

function row(layer, head, from) {
  return tokens.map((_, to) => weight(layer, head, from, to));
}

// --- Colours.

const RAMPS = {
  attention: {
    light: ["#ffffff", "#d9e8f5", "#9cc7e4", "#4f98cf", "#1b64ab", "#082f63"],
    dark: ["#12161b", "#15304b", "#1b5486", "#2f86c8", "#79bdf2", "#e9f5ff"],
  },
  layers: {
    light: ["#f6f7f9", "#d8efe6", "#9bd6bd", "#4bb08a", "#178063", "#06503b"],
    dark: ["#171b21", "#123329", "#175e49", "#249471", "#62cfa6", "#d9fff1"],
  },
};

function colour(ramp, value) {
  const stops = RAMPS[ramp][dark.matches ? "dark" : "light"];
  const place = Math.min(Math.max(value, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return [1, 3, 5].map((at) => {
    const [a, b] = [stops[low], stops[low + 1]].map((hex) => parseInt(hex.slice(at, at + 2), 16));
    return Math.round(a + (b - a) * (place - low));
  });
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;
// The square root lets weights of a few per cent be seen beside those near 1.
const shadeOf = (share) => colour("attention", Math.sqrt(share));

function inkOn(rgb) {
  const [r, g, b] = rgb.map((byte) => (byte / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.3 ? "#11151a" : "#ffffff";
}

function paint(node, rgb) {
  node.style.backgroundColor = css(rgb);
  node.style.color = inkOn(rgb);
}

// --- Small helpers.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 9.95 ? value.toFixed(0) : value >= 0.095 ? value.toFixed(1) :
    value > 0 ? "<0.1" : "0"} %`;
}

const pieceNode = (piece, tag = "span") =>
  make(tag, {lang: "ko", class: piece.kind}, piece.label);

function aboutBytes(piece, completes) {
  if (completes) return `its bytes complete “${completes}”`;
  return piece.kind === "bytes" ? "bytes of a character that is not whole" : "";
}

/** Arrow keys go from one of `nodes` to the next; one of them at a time is in the tab order. */
function rove(nodes, columns) {
  nodes.forEach((node, index) => {
    node.tabIndex = index ? -1 : 0;
    node.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
      const next = step && nodes[index + step];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
    node.addEventListener("focus", () => {
      for (const other of nodes) other.tabIndex = -1;
      node.tabIndex = 0;
    });
  });
}

// --- The tip: what is under the pointer or the focus, in detail.

function tipFor(node, content) {
  const show = () => showTip(node, content());
  node.addEventListener("pointerenter", show);
  node.addEventListener("focus", show);
  for (const kind of ["pointerleave", "blur"]) node.addEventListener(kind, hideTip);
}

let tipped = null;

function showTip(node, children) {
  tipped = node;
  $("tip").replaceChildren(...children);
  $("tip").hidden = false;
  placeTip();
}

function placeTip() {
  if (!tipped) return;
  const tip = $("tip"), at = tipped.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const below = at.bottom + 8 + own.height < innerHeight;
  const left = Math.min(Math.max(at.left, 8), innerWidth - own.width - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? at.bottom + 8 : Math.max(at.top - own.height - 8, 8)}px`;
}

function hideTip() {
  tipped = null;
  $("tip").hidden = true;
}

addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
addEventListener("scroll", placeTip, {capture: true, passive: true});

// --- The head of the page, and the text.

function drawHeader() {
  $("prompt").textContent = data.prompt;
  const number = (value) => value.toLocaleString("en");
  const read = N + data.skipped;
  $("facts").textContent = [
    data.name, `${L} layers × ${H} heads`, `width ${number(shape.width)}`,
    `${number(shape.parameters)} parameters`, shape.dtype, `${number(read)} tokens`,
  ].join(" · ");
  $("tokens-note").textContent = "Choose a token to see where heads look from there." +
    (data.skipped ? ` The model has read ${number(data.skipped)} more ahead of these.` : "");
}

function drawTokens() {
  const nodes = tokens.map((token, index) => {
    const node = make("button", {role: "option", class: token.kind}, token.label);
    node.addEventListener("click", () => choose({token: index}));
    node.addEventListener("focus", () => node.matches(":focus-visible") && choose({token: index}));
    tipFor(node, () => tokenTip(token, index));
    return node;
  });
  rove(nodes, 1);
  $("tokens").append(...nodes);
}

function tokenTip(token, index) {
  const about = aboutBytes(token, token.completes);
  const place = `token ${data.skipped + index + 1}, id ${token.id}`;
  return [
    make("p", {}, pieceNode(token, "b"), ` ${place}`),
    ...(token.bytes ? [make("p", {class: "muted"}, `bytes ${token.bytes}`)] : []),
    ...(about ? [make("p", {class: "muted"}, about)] : []),
  ];
}

// --- Heads.

function drawScale() {
  const steps = Array.from({length: 11}, (_, i) => css(colour("attention", i / 10)));
  const bar = make("i");
  bar.style.background = `linear-gradient(to right, ${steps})`;
  $("attention-scale").replaceChildren("0", bar, "1 (shade by the square root)");
}

function drawHeads() {
  const grid = $("heads");
  grid.style.gridTemplateColumns = `auto repeat(${H}, minmax(${H > 8 ? 27 : 48}px, 132px))`;
  const names = Array.from({length: H}, (_, head) => make("span", {class: "edge"}, `${head + 1}`));
  grid.append(make("span", {class: "edge"}, "layer"), ...names);
  const nodes = [];
  for (let layer = 0; layer < L; layer++) {
    const line = Array.from({length: H}, (_, head) => headButton(layer, head));
    grid.append(make("span", {class: "edge"}, `${layer + 1}`), ...line);
    nodes.push(...line);
  }
  rove(nodes, H);
}

function headButton(layer, head) {
  const label = `layer ${layer + 1}, head ${head + 1}`;
  const canvas = make("canvas", {width: N, height: N});
  const node = make("button", {"aria-label": label, "data-head": layer * H + head}, canvas);
  node.addEventListener("pointerenter", () => enlarge(layer, head));
  node.addEventListener("pointerleave", () => enlarge(chosen.layer, chosen.head));
  for (const kind of ["click", "focus"]) {
    node.addEventListener(kind, () => choose({layer, head}));
  }
  return node;
}

let shades = [];

function paintHeads() {
  shades = Array.from({length: 1024}, (_, i) => [...colour("attention", i / 1023), 255]);
  for (const node of $("heads").querySelectorAll("button")) {
    const head = Number(node.dataset.head);
    paintSquare(node.firstChild, Math.floor(head / H), head % H);
  }
}

/** A pixel for each weight. Millions of them, for long prompts: hence the table of shades. */
function paintSquare(canvas, layer, head) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(N, N);
  for (let from = 0; from < N; from++) {
    for (let to = 0; to < N; to++) {
      const shade = shades[Math.round(1023 * Math.sqrt(weight(layer, head, from, to)))];
      image.data.set(shade, 4 * (from * N + to));
    }
  }
  context.putImageData(image, 0, 0);
}

// --- One head, enlarged.

let enlarged = [0, 0];

function enlarge(layer, head) {
  enlarged = [layer, head];
  $("head-name").textContent = `Layer ${layer + 1}, head ${head + 1}`;
  $("head-habits").textContent = habits(layer, head);
  paintMatrix();
  tellRow();
}

/** Means over the tokens that have others before them. */
function habits(layer, head) {
  if (N < 2 || data.skipped) return "";
  let first = 0, before = 0, itself = 0, bits = 0;
  for (let from = 1; from < N; from++) {
    const shares = row(layer, head, from);
    first += shares[0] / (N - 1);
    before += shares[from - 1] / (N - 1);
    itself += shares[from] / (N - 1);
    for (const share of shares) bits -= share && share * Math.log2(share) / (N - 1);
  }
  return `On average ${percent(first)} on the first token, ${percent(before)} on the one before, ` +
    `${percent(itself)} on itself; entropy ${bits.toFixed(1)} bits.`;
}

/** Sizes of the enlarged matrix in a panel of some width: of a cell, and of the labels' margins. */
function matrixSizes(context, width) {
  context.font = font(13);
  const longest = Math.max(...tokens.map((token) => context.measureText(token.label).width));
  const margin = Math.min(longest + 12, 0.3 * width);
  const cell = Math.min((width - margin - 0.5 * margin) / N, 46);
  return {margin, cell, size: Math.min(13, Math.max(9, 0.8 * cell)),
    every: Math.ceil(11 / cell)};
}

// Korean fonts have some signs, such as ‹, full width: bytes are in another.
const font = (size, weight = 400, kind = "text") => kind === "bytes" ?
  `${weight} ${0.9 * size}px ui-monospace, monospace` :
  `${weight} ${size}px ${getComputedStyle(document.documentElement).getPropertyValue("--hangul")}`;

function paintMatrix() {
  const canvas = $("matrix"), context = canvas.getContext("2d");
  const width = canvas.parentNode.clientWidth, ratio = devicePixelRatio || 1;
  const {margin, cell, size, every} = matrixSizes(context, width);
  const height = margin + N * cell + 4;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = `${height}px`;
  context.scale(ratio, ratio);
  const [layer, head] = enlarged;
  canvas.setAttribute("aria-label", `attention of layer ${layer + 1}, head ${head + 1}`);
  if (cell < 12) paintPixels(context, margin, cell); else paintCells(context, margin, cell);
  outlineRow(context, margin, cell);
  labelMatrix(context, margin, cell, size, every);
}

/** Cells too small for numbers, out of the head's own square. */
function paintPixels(context, margin, cell) {
  const [layer, head] = enlarged;
  const square = $("heads").querySelectorAll("canvas")[layer * H + head];
  context.imageSmoothingEnabled = cell < 1;
  context.drawImage(square, margin, margin, N * cell, N * cell);
}

function paintCells(context, margin, cell) {
  for (let from = 0; from < N; from++) {
    for (let to = 0; to < N; to++) {
      paintCell(context, weight(...enlarged, from, to), margin + to * cell, margin + from * cell,
        cell);
    }
  }
}

function paintCell(context, share, x, y, cell) {
  const rgb = shadeOf(share);
  context.fillStyle = css(rgb);
  context.fillRect(x, y, cell - 1, cell - 1);
  if (cell < 25 || share < 0.005) return;
  context.font = font(Math.min(12, 0.36 * cell));
  context.fillStyle = inkOn(rgb);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(Math.round(100 * share), x + cell / 2 - 0.5, y + cell / 2);
}

function outlineRow(context, margin, cell) {
  const style = getComputedStyle(document.documentElement);
  context.strokeStyle = style.getPropertyValue("--line");
  context.strokeRect(margin - 0.5, margin - 0.5, N * cell, N * cell);
  context.strokeStyle = style.getPropertyValue("--accent");
  context.lineWidth = 2;
  context.strokeRect(margin - 1, margin + chosen.token * cell - 1, N * cell + 1, cell + 1);
}

function labelMatrix(context, margin, cell, size, every) {
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  tokens.forEach((token, index) => {
    const isChosen = index === chosen.token;
    const isBesideChosen = !isChosen && Math.abs(index - chosen.token) < every;
    if ((index % every && !isChosen) || isBesideChosen) return;
    context.font = font(size, isChosen ? 700 : 400, token.kind);
    context.fillStyle = ink;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const middle = margin + (index + 0.5) * cell;
    context.fillText(token.label, margin - 6, middle, margin - 8);
    context.save();
    context.translate(middle, margin - 6);
    context.rotate(-Math.PI / 3);
    context.textAlign = "left";
    context.fillText(token.label, 0, 0, margin);
    context.restore();
  });
}

function cellUnder(event) {
  const {margin, cell} = matrixSizes($("matrix").getContext("2d"), $("matrix").clientWidth);
  const box = $("matrix").getBoundingClientRect();
  const [to, from] = [event.clientX - box.left, event.clientY - box.top]
    .map((place) => Math.floor((place - margin) / cell));
  return [to, from].every((place) => place >= 0 && place < N) ? {from, to} : null;
}

function tellPair({from, to}) {
  const share = percent(weight(...enlarged, from, to));
  $("pair").replaceChildren("From ", pieceNode(tokens[from], "b"), " to ",
    pieceNode(tokens[to], "b"), `: ${share}`);
}

/** The tokens that the chosen one looks at most. */
function tellRow() {
  const shares = row(...enlarged, chosen.token);
  const order = shares.map((_, to) => to).sort((a, b) => shares[b] - shares[a]).slice(0, 5);
  const parts = order.filter((to) => shares[to] > 0.0005).flatMap((to, place) =>
    [place ? ", " : "", pieceNode(tokens[to], "b"), ` ${percent(shares[to])}`]);
  const rest = 1 - shares.reduce((sum, share) => sum + share, 0);
  if (data.skipped) parts.push(`; ${percent(rest)} on tokens ahead of these`);
  $("pair").replaceChildren("From ", pieceNode(tokens[chosen.token], "b"), ": ", ...parts);
}

function followMatrix() {
  const canvas = $("matrix");
  canvas.addEventListener("pointermove", (event) => {
    const under = cellUnder(event);
    if (under) tellPair(under); else tellRow();
  });
  canvas.addEventListener("pointerleave", tellRow);
  canvas.addEventListener("click", (event) => {
    const under = cellUnder(event);
    if (under) choose({token: under.from});
  });
  // In the next frame: to paint changes the height of what is observed, which is no new width.
  new ResizeObserver(() => requestAnimationFrame(paintMatrix)).observe(canvas.parentNode);
}

// --- The text, shaded by every head.

function drawStrips() {
  const many = L * H * N > 1500;
  for (let layer = 0; layer < L; layer++) {
    const body = make("div", {class: "heads-of-layer"});
    const part = make("details", {"data-layer": layer}, make("summary", {}, `layer ${layer + 1}`),
      body);
    part.open = !many || layer === chosen.layer;
    part.addEventListener("toggle", () => fillStrips(part));
    $("strips").append(part);
  }
}

function fillStrips(part) {
  const layer = Number(part.dataset.layer);
  if (!part.open) return;
  part.lastChild.replaceChildren(...Array.from({length: H}, (_, head) => strip(layer, head)));
}

function strip(layer, head) {
  const name = make("button", {"aria-pressed": layer === chosen.layer && head === chosen.head},
    `head ${head + 1}`);
  name.addEventListener("click", () => choose({layer, head}));
  const shares = row(layer, head, chosen.token);
  const text = make("p", {lang: "ko"});
  tokens.forEach((token, to) => {
    const node = make("span", {class: token.kind, title: percent(shares[to])}, token.label);
    if (to === chosen.token) node.classList.add("from");
    if (to > chosen.token && !shares[to]) node.classList.add("unseen");
    else paint(node, shadeOf(shares[to]));
    text.append(node, "\u200b");
  });
  return make("div", {class: "strip"}, name, text);
}

// --- The logit lens.

const SHADES = {
  top: ["the likeliest token's probability", (cell) => cell.top[0][1]],
  next: ["the probability of what really follows", (cell) => cell.next ? cell.next[0] : 0],
  entropy: ["certainty (low entropy)", (cell) => 1 - cell.entropy / Math.log2(shape.vocabulary)],
};

function drawShades() {
  for (const [name, [label]] of Object.entries(SHADES)) {
    const input = make("input", {type: "radio", name: "shade", value: name});
    input.checked = name === chosen.shade;
    input.addEventListener("change", () => choose({shade: name}));
    $("shades").append(make("label", {}, input, ` ${label}`));
  }
}

const layerName = (index) => index ? `layer ${index}` : "embedding";

function drawLayers() {
  const heads = tokens.map((token, index) =>
    make("th", {scope: "col"}, make("small", {}, data.skipped + index + 1), pieceNode(token)));
  const cells = [];
  const lines = layers.map((line, layer) => {
    const nodes = line.map((cell, position) => layerCell(cell, layer, position));
    cells.push(...nodes);
    return make("tr", {}, make("th", {scope: "row"}, layerName(layer)), ...nodes);
  });
  const follows = tokens.slice(1).map((token) => make("td", {}, pieceNode(token)));
  $("layers").append(
    make("thead", {}, make("tr", {}, make("td", {}, make("small", {}, "behind")), ...heads)),
    make("tbody", {}, ...lines),
    make("tfoot", {}, make("tr", {}, make("th", {scope: "row"}, "follows"), ...follows)));
  rove(cells, N);
}

function layerCell(cell, layer, position) {
  const [id, probability] = cell.top[0];
  const rank = cell.next && cell.next[1];
  const node = make("td", {class: rank === 1 ? "hit" : undefined}, pieceNode(pieces[id]),
    make("small", {}, percent(probability)));
  if (rank && rank <= cell.top.length) {
    node.append(make("span", {class: "rank", title: `what follows has rank ${rank}`},
      rank === 1 ? "✓" : rank));
  }
  node.addEventListener("click", () => choose({token: position}));
  tipFor(node, () => layerTip(cell, layer, position));
  return node;
}

function layerTip(cell, layer, position) {
  const next = position + 1 < N ? tokens[position + 1] : null;
  const lines = cell.top.map(([id, probability, completes]) => {
    const bar = make("i");
    bar.style.width = `${100 * probability}%`;
    const whole = completes ? make("em", {lang: "ko"}, ` completes ${completes}`) : "";
    return make("li", {class: next && next.id === id ? "hit" : ""},
      make("div", {}, pieceNode(pieces[id]), whole), make("div", {}, bar),
      make("b", {}, percent(probability)));
  });
  const end = [`entropy ${cell.entropy.toFixed(1)} bits`];
  if (cell.next) end.push(`rank ${cell.next[1]}, ${percent(cell.next[0])} for what follows: `);
  return [
    make("p", {}, `${layerName(layer)}, behind `, pieceNode(tokens[position], "b")),
    make("ol", {}, ...lines),
    make("p", {class: "muted"}, end.join("; "), ...(cell.next ? [pieceNode(next, "b")] : [])),
  ];
}

function paintLayers() {
  const value = SHADES[chosen.shade][1];
  const rows = $("layers").tBodies[0].rows;
  layers.forEach((line, layer) => line.forEach((cell, position) => {
    paint(rows[layer].cells[position + 1], colour("layers", value(cell)));
  }));
}

// --- What is chosen, which the address keeps.

function choose(changes) {
  Object.assign(chosen, changes);
  const {layer, head, token, shade} = chosen;
  // A page within another, or one that a program made, may have no address to write to.
  try {
    history.replaceState(null, "", `#layer=${layer + 1}&head=${head + 1}&token=${token + 1}` +
      `&shade=${shade}`);
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
  }
  if ("shade" in changes) paintLayers();
  if ("layer" in changes || "token" in changes) showChoice();
}

function showChoice() {
  const {layer, head, token} = chosen;
  [...$("tokens").children].forEach((node, index) => {
    node.setAttribute("aria-selected", index === token);
  });
  for (const node of $("heads").querySelectorAll("button")) {
    node.setAttribute("aria-pressed", Number(node.dataset.head) === layer * H + head);
  }
  $("from").replaceChildren(pieceNode(tokens[token]));
  enlarge(layer, head);
  for (const part of $("strips").children) fillStrips(part);
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [name, end] of [["layer", L], ["head", H], ["token", N]]) {
    const value = Number(asked.get(name)) - 1;
    if (Number.isInteger(value) && value >= 0 && value < end) chosen[name] = value;
  }
  if (asked.get("shade") in SHADES) chosen.shade = asked.get("shade");
}

function repaint() {
  drawScale();
  paintHeads();
  paintLayers();
  showChoice();
}

readAddress();
drawHeader();
drawTokens();
drawHeads();
drawStrips();
drawShades();
drawLayers();
followMatrix();
repaint();
dark.addEventListener("change", repaint);
document.documentElement.dataset.drawn = "all";
