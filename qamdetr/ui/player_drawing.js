// Drawing of the player: ranking, waveform, lanes and table. Runs as one body with player.js, which comes after it and holds the state
// (`view`, `beta`, `showAll`, `playing`), the skeleton that is filled here (`wave`, `lane`, `table`, ...) and the playing.

const SVG = "http://www.w3.org/2000/svg";
const TICK_SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const TICK_PIXELS = 64;
const MOMENT_PIXELS = 24; // least width of a moment's button: a finger's or a pointer's target
const MOMENT_ROW_PIXELS = 30;
const ICONS = { play: "M4 2.5v11l9.5-5.5z", pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z" };

// ---- small helpers ----

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function draw(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function icon(name) {
  const node = draw("svg", { viewBox: "0 0 16 16", width: 12, height: 12, "aria-hidden": "true" });
  node.append(draw("path", { d: ICONS[name], fill: "currentColor" }));
  return node;
}

function clock(seconds, decimals) {
  const unit = 10 ** decimals;
  const total = Math.round(seconds * unit);
  const whole = Math.floor(total / unit);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = String(whole % 60).padStart(2, "0") + (decimals ? "." + String(total % unit).padStart(decimals, "0") : "");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const percent = (seconds) => (100 * Math.min(Math.max(seconds / view.duration, 0), 1)).toFixed(4) + "%";
const figure = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const windowWords = (row) => `${clock(row.start, 1)} to ${clock(row.end, 1)}`;

// ---- ranking: the formula of the server (report, Eq. 3), so that the slider answers at once ----

function ranked() {
  const verified = view.verifier !== "none";
  const rows = view.moments.map((row) => {
    const blend = verified && row.verifier_score !== null;
    return { ...row, score: blend ? (1 - beta) * row.decoder_score + beta * row.verifier_score : row.decoder_score };
  });
  rows.sort((a, b) => b.decoder_score - a.decoder_score); // as on the server, equal scores keep the decoder's order
  const byDecoder = rows.map((row) => row.rank);
  rows.sort((a, b) => b.score - a.score);
  const best = rows.length ? rows[0].score : 0;
  rows.forEach((row, index) => {
    row.moved = byDecoder.indexOf(row.rank) - index;
    row.rank = index + 1;
    row.guess = !view.found && index === 0;
    row.likely = view.found ? row.score >= view.likely_share * best : row.guess;
  });
  return rows;
}

// ---- drawing ----

function drawWave() {
  const [low, high] = view.peaks;
  const top = high.map((value, column) => `${column},${(50 - 48 * value).toFixed(1)}`);
  const bottom = low.map((value, column) => `${column},${(50 - 48 * value).toFixed(1)}`).reverse();
  const svg = draw("svg", { viewBox: `0 0 ${Math.max(low.length - 1, 1)} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(draw("polygon", { points: [...top, ...bottom].join(" ") }));
  wave.replaceChildren(svg);
}

function drawRelevance() {
  relevance.hidden = view.state !== "result";
  if (relevance.hidden) return;
  const point = (second, value) => `${second},${(100 - 96 * value).toFixed(1)}`;
  const middles = view.saliency.map((value, clip) => point(Math.min(clip + 0.5, view.duration), value));
  const line = [point(0, view.saliency[0]), ...middles, point(view.duration, view.saliency[view.saliency.length - 1])];
  const svg = draw("svg", { viewBox: `0 0 ${view.duration} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(
    draw("polygon", { points: [`0,100`, ...line, `${view.duration},100`].join(" ") }),
    draw("polyline", { points: line.join(" "), "vector-effect": "non-scaling-stroke" }),
  );
  relevance.replaceChildren(svg, make("span", "qd-label", "Relevance to the query, second by second"));
}

function drawAxis() {
  const most = Math.max(2, Math.floor(plot.clientWidth / TICK_PIXELS));
  const step = TICK_SECONDS.find((candidate) => view.duration / candidate <= most) ?? Math.ceil(view.duration / most / 3600) * 3600;
  axis.replaceChildren();
  grid.replaceChildren();
  for (let second = 0; second <= view.duration; second += step) {
    const line = make("i");
    line.style.left = percent(second);
    grid.append(line);
    const room = ((view.duration - second) / view.duration) * plot.clientWidth;
    if (second > 0 && room < 24) continue;
    const tick = make("span", second === 0 ? "qd-first" : "", clock(second, 0));
    tick.style.left = percent(second);
    axis.append(tick);
  }
}

function rowsOfLane(items) {
  // Better moments take the upper rows; a moment goes to the first row where its button (never narrower than a finger) has room.
  const scale = plot.clientWidth / view.duration;
  const rows = [];
  return items.map((item) => {
    const width = Math.max((item.end - item.start) * scale, MOMENT_PIXELS);
    const left = Math.min(item.start * scale, plot.clientWidth - width);
    let row = rows.findIndex((taken) => taken.every(([from, to]) => left >= to + 2 || left + width + 2 <= from));
    if (row < 0) row = rows.push([]) - 1;
    rows[row].push([left, left + width]);
    return { item, left, width, row };
  });
}

function drawLane(target, items, name, label, decorate) {
  target.replaceChildren(make("span", "qd-label", label));
  const placed = rowsOfLane(items);
  target.style.height = `${20 + MOMENT_ROW_PIXELS * Math.max(1, ...placed.map((entry) => entry.row + 1))}px`;
  for (const { item, left, width, row } of placed) {
    const top = `${18 + MOMENT_ROW_PIXELS * row}px`;
    const bar = make("span", "qd-bar");
    Object.assign(bar.style, { left: percent(item.start), width: percent(item.end - item.start), top });
    const button = make("button", "qd-moment", item.rank === undefined ? "" : String(item.rank));
    Object.assign(button.style, { left: `${left}px`, width: `${width}px`, top });
    button.setAttribute("aria-label", `Play ${name} ${windowWords(item)}`);
    button.title = windowWords(item);
    decorate(button, bar, item);
    playable(button, item);
    target.append(bar, button);
  }
}

function playable(button, row) {
  button.type = "button";
  button.dataset.start = row.start;
  button.dataset.end = row.end;
  button.addEventListener("click", () => playMoment(row));
  for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => showBand(row));
  for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => showBand(audio.paused ? null : playing));
}

function drawLanes(rows) {
  const answer = view.state === "result";
  lane.hidden = !answer;
  truth.hidden = !answer || view.truth === null;
  if (!answer) return;
  const label = view.found ? "Moments found" : "Best guess only";
  drawLane(lane, rows.filter((row) => row.likely || showAll), "moment", label, (button, bar, row) => {
    const kind = row.guess ? "qd-guess" : row.likely ? "qd-likely" : "qd-unlikely";
    button.classList.add(kind);
    bar.classList.add(kind);
    button.setAttribute("aria-label", `Play moment ${row.rank}, ${windowWords(row)}, score ${figure(row.score)}`);
  });
  if (truth.hidden) return;
  const items = view.truth.map(([from, to]) => ({ start: from, end: to }));
  drawLane(truth, items, "true moment", items.length ? "True moments" : "True moments: none, the sound is not in this example", () => {});
  if (!items.length) truth.style.height = "22px";
}

// ---- the table ----

const IOU_COLUMN = { head: "IoU", help: "Overlap with the best true moment: 1 is exact, 0 is beside it", cell: (row) => figure(row.iou) };
const VERIFIER_COLUMNS = [
  { head: "Verifier", help: "How sure the verifier is", cell: (row) => figure(row.verifier_score) },
  { head: "Moved", help: "Places gained or lost against the decoder alone", cell: movedCell },
];

function columns() {
  const verified = view.verifier !== "none";
  return [
    { head: "#", help: "Rank", cell: rankCell },
    { head: "Start", cell: (row) => clock(row.start, 1) },
    { head: "End", cell: (row) => clock(row.end, 1) },
    { head: "Score", cell: scoreCell },
    ...(view.truth === null ? [] : [IOU_COLUMN]),
    { head: "Decoder", help: "Foreground · quality", cell: (row) => figure(row.decoder_score) },
    { head: "Foreground", help: "How likely the window holds the sound", cell: (row) => figure(row.foreground) },
    { head: "Quality", help: "How well the model thinks the window fits (predicted IoU)", cell: (row) => figure(row.quality) },
    ...(verified ? VERIFIER_COLUMNS : []),
  ];
}

function rankCell(row) {
  const cell = make("b", "", String(row.rank));
  if (row.guess) cell.append(make("span", "qd-tag", "best guess"));
  return cell;
}

function scoreCell(row) {
  const cell = make("span", "qd-score");
  const meter = make("span", "qd-meter");
  const fill = make("span");
  fill.style.width = `${(100 * row.score).toFixed(1)}%`;
  meter.append(fill);
  cell.append(meter, make("span", "", figure(row.score)));
  return cell;
}

function movedCell(row) {
  if (!row.moved) return make("span", "qd-still", "same");
  return make("span", row.moved > 0 ? "qd-up" : "qd-down", `${row.moved > 0 ? "up" : "down"} ${Math.abs(row.moved)}`);
}

function drawTable(rows) {
  table.hidden = view.state !== "result" || rows.length === 0;
  if (table.hidden) return;
  const grid = make("table");
  const headRow = make("tr");
  headRow.append(make("th", "qd-corner", "Play"));
  const shown = columns();
  for (const column of shown) {
    const cell = make("th", "", column.head);
    if (column.help) cell.title = column.help;
    cell.scope = "col";
    headRow.append(cell);
  }
  const body = make("tbody");
  for (const row of rows.filter((entry) => entry.likely || showAll)) body.append(tableRow(row, shown));
  const header = make("thead");
  header.append(headRow);
  grid.append(header, body);
  const scroller = make("div", "qd-scroll");
  scroller.append(grid);
  const hidden = rows.filter((row) => !row.likely).length;
  table.replaceChildren(scroller);
  if (hidden) {
    const noun = hidden === 1 ? "candidate" : "candidates";
    const more = make("button", "qd-more", showAll ? `Hide the ${hidden} less likely ${noun}` : `Show ${hidden} less likely ${noun}`);
    more.type = "button";
    more.setAttribute("aria-expanded", String(showAll));
    more.addEventListener("click", () => {
      showAll = !showAll;
      drawAnswer();
      root.querySelector(".qd-more")?.focus();
    });
    table.append(more);
  }
}

function tableRow(row, shown) {
  const line = make("tr", row.guess ? "qd-guessed" : row.likely ? "" : "qd-faint");
  line.addEventListener("mouseenter", () => showBand(row));
  line.addEventListener("mouseleave", () => showBand(audio.paused ? null : playing));
  const first = make("td");
  const button = make("button", "qd-play");
  button.setAttribute("aria-label", `Play moment ${row.rank}, ${windowWords(row)}`);
  button.append(icon("play"));
  playable(button, row);
  first.append(button);
  line.append(first);
  for (const column of shown) {
    const cell = make("td");
    cell.append(column.cell(row));
    line.append(cell);
  }
  return line;
}

function drawCaption() {
  caption.hidden = view.state !== "result";
  if (caption.hidden) return;
  const formula =
    view.verifier === "none" ? "Score = foreground · quality" : `Score = ${(1 - beta).toFixed(2)} · decoder + ${beta.toFixed(2)} · verifier`;
  caption.textContent = `Encoder: ${view.encoder}. Verifier: ${view.verifier}. ${formula}.`;
}
