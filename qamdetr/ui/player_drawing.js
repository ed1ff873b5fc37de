// The plot below the waveform: for each answer its saliency curve and its moments as buttons, all on one time axis.

const MOMENT_PIXELS = 24; // least width of a moment's button: a finger's or a pointer's target

/** In pixels: the plot's width, and heights that grow with the visitor's text: of a row of moments, and of the lane's words above it. */
function laneSizes() {
  const text = textScale();
  return { width: plot.clientWidth, row: Math.max(30, 20 * text + 4), top: 18 * text };
}

/** A drawing over the whole recording, x in seconds and y from 0 (top) to 100; `drawRange` moves its viewBox. */
function curve(...shapes) {
  const svg = draw("svg", { class: "qd-curve", viewBox: `${range.from} 0 ${span()} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(...shapes);
  return svg;
}

function saliencyCurve(lane) {
  const point = (second, value) => `${second},${(100 - 96 * value).toFixed(1)}`;
  const middles = lane.saliency.map((value, clip) => point(Math.min((clip + 0.5) * lane.clip_seconds, view.duration), value));
  const line = [point(0, lane.saliency[0]), ...middles, point(view.duration, lane.saliency[lane.saliency.length - 1])];
  return curve(
    draw("polygon", { points: [`0,100`, ...line, `${view.duration},100`].join(" ") }),
    draw("polyline", { points: line.join(" "), "vector-effect": "non-scaling-stroke" }),
  );
}

const shownRows = (lane) => lane.rows.filter((row) => row.likely || lane.showAll);
const several = () => answers.length > 1;

/** Build the lanes anew: after an answer, and when ranks or the rows shown change. */
function drawLanes() {
  const sizes = laneSizes(); // asked for before anything changes: after a change the browser would have to lay out the page to tell
  lanes.replaceChildren();
  const truths = truthWords(answers);
  answers.forEach((lane, index) => {
    lanes.append(answerBlock(lane));
    if (truths[index] !== null) lanes.append(truthBlock(lane, truths[index]));
  });
  placeLanes(sizes);
  drawOverviewMarks();
}

function answerBlock(lane) {
  const block = make("div", "qd-answer-block");
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", `${lane.label}: ${answerTitle(lane, lane.rows)}`);
  const relevance = make("div", "qd-relevance");
  const words = make("div", "qd-label");
  if (several()) words.append(oneLine("b", "", lane.label), make("span", "", lane.how || "relevance over time"));
  else words.append(make("span", "", "Relevance to the query over time"));
  lane.curve ??= saliencyCurve(lane); // up to an hour of clips: drawn once, however often the ranks change
  relevance.append(lane.curve, words);
  const kind = { found: several() ? answerTitle(lane, lane.rows) : "Moments found", absent: `${lane.message.title}: best guess only`, none: "No moment" };
  block.append(
    relevance,
    momentLane(shownRows(lane), "qd-lane", kind[lane.message.kind], (button, bar, row) => {
      const look = row.guess ? "qd-guess" : row.likely ? "qd-likely" : "qd-unlikely";
      button.classList.add(look);
      bar.classList.add(look);
      button.dataset.lane = lane.number;
      button.textContent = String(row.rank);
      button.setAttribute("aria-label", `Play moment ${row.rank}${several() ? ` of ${lane.label}` : ""}, ${momentWords(row)}`);
      button.title = momentWords(row);
      playable(button, row, lane.number);
    }),
  );
  return block;
}

const momentWords = (row) =>
  `${windowWords(row)}, score ${figure(row.score)}${row.iou === null ? "" : `, IoU ${figure(row.iou)}`}${row.guess ? ", best guess only" : ""}`;

function truthBlock(lane, words) {
  const items = lane.truth.map(([from, to]) => ({ start: from, end: to }));
  const label = items.length ? words : `${words}: none, the sound is not in this example`;
  return momentLane(items, "qd-lane qd-truth", label, (button, bar, row) => {
    button.setAttribute("aria-label", `Play true moment ${windowWords(row)}`);
    button.title = windowWords(row);
    playable(button, row);
  });
}

function momentLane(items, className, words, decorate) {
  const target = make("div", className);
  target.append(oneLine("span", "qd-label", words));
  target.moments = items.map((item) => {
    const bar = make("span", "qd-bar");
    const button = make("button", "qd-moment");
    button.type = "button";
    decorate(button, bar, item);
    target.append(bar, button);
    return { item, bar, button };
  });
  return target;
}

// ---- where moments stand: rows are settled for the whole recording, so that nothing jumps while one zooms ----

function rowsOfLane(items, pixels) {
  // Better moments take the upper rows; a moment goes to the first row where its button (never narrower than a finger) has room.
  const scale = pixels / view.duration;
  const rows = [];
  return items.map((item) => {
    const width = Math.max((item.end - item.start) * scale, MOMENT_PIXELS);
    const left = Math.min(item.start * scale, pixels - width);
    let row = rows.findIndex((taken) => taken.every(([from, to]) => left >= to + 2 || left + width + 2 <= from));
    if (row < 0) row = rows.push([]) - 1;
    rows[row].push([left, left + width]);
    return row;
  });
}

function placeLanes(sizes = laneSizes()) {
  const focused = document.activeElement;
  const { width, row, top } = sizes;
  for (const target of lanes.querySelectorAll(".qd-lane")) {
    const rows = rowsOfLane(target.moments.map(({ item }) => item), width);
    const count = target.moments.length ? Math.max(...rows) + 1 : 0;
    target.style.height = `${top + (count ? 2 + row * count : 4)}px`;
    target.moments.forEach((moment, index) => placeMoment(moment, top + row * rows[index], width));
  }
  if (focused?.hidden && root.contains(focused)) wave.focus({ preventScroll: true }); // the keys stay with the player
}

function placeMoment({ item, bar, button }, top, pixels) {
  const scale = pixels / span();
  const width = Math.max((item.end - item.start) * scale, MOMENT_PIXELS);
  const left = Math.min((item.start - range.from) * scale, (view.duration - range.from) * scale - width);
  // A moment that reaches out of view is cut there, so that its rank can be read.
  const from = Math.max(left, -2);
  const to = Math.min(left + width, pixels + 2);
  bar.hidden = button.hidden = to - from < 3;
  Object.assign(bar.style, { left: at(item.start), width: wide(item.end - item.start), top: `${top}px` });
  Object.assign(button.style, { left: `${from}px`, width: `${to - from}px`, top: `${top}px` });
}
