// Below the plot, for each answer: what was found, the table of its candidates, and which of them are chosen for export.

const IOU_COLUMN = { head: "IoU", help: "Overlap with the best true moment: 1 is exact, 0 is beside it", cell: (row) => figure(row.iou) };
const PROBABILITY_COLUMN = { head: "Probability", help: "How often a moment of such a decoder score was right", cell: (row) => figure(row.probability) };
const VERIFIER_COLUMNS = [
  { head: "Verifier", help: "How sure the verifier is", cell: (row) => figure(row.verifier_score) },
  { head: "Moved", help: "Places gained or lost against the decoder alone", cell: movedCell },
];

function columns(lane) {
  return [
    { head: "#", help: "Rank", cell: rankCell },
    { head: "Start", cell: (row) => clock(row.start, 1) },
    { head: "End", cell: (row) => clock(row.end, 1) },
    { head: "Score", help: scoreHelp(lane), cell: scoreCell },
    ...(lane.truth === null ? [] : [IOU_COLUMN]),
    { head: "Decoder", help: decoderFormula(lane), cell: (row) => figure(row.decoder_score) },
    { head: "Foreground", help: "How likely the window holds the sound", cell: (row) => figure(row.foreground) },
    { head: "Quality", help: hasQuality(lane) ? "How well the model thinks the window fits (predicted IoU)" : "Not in this ranking", cell: (row) => figure(row.quality) },
    ...(isVerified(lane) && isCalibrated(lane) ? [PROBABILITY_COLUMN] : []),
    ...(isVerified(lane) ? VERIFIER_COLUMNS : []),
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
  fill.style.width = `${(100 * clamp(row.score, 0, 1)).toFixed(1)}%`;
  meter.append(fill);
  cell.append(meter, make("span", "", figure(row.score)));
  return cell;
}

function movedCell(row) {
  if (!row.moved) return make("span", "qd-still", "same");
  return make("span", row.moved > 0 ? "qd-up" : "qd-down", `${row.moved > 0 ? "up" : "down"} ${Math.abs(row.moved)}`);
}

// ---- one section per answer ----

function drawSections() {
  sections.replaceChildren(...answers.map(section));
  const [words, ...others] = answers.filter((lane) => lane.rows.length).map(captionOf);
  if (words && others.every((other) => other === words)) sections.append(make("p", "qd-caption", words)); // once for all
  else for (const lane of answers) lane.section.querySelector(".qd-table")?.append(make("p", "qd-caption", captionOf(lane)));
}

const decoderFormula = (lane) => (hasQuality(lane) ? "Foreground · quality" : "Foreground");

function scoreHelp(lane) {
  if (isVerified(lane)) return "Decoder and verifier, blended";
  return isCalibrated(lane) ? PROBABILITY_COLUMN.help : "The decoder's score";
}

function captionOf(lane) {
  const own = isCalibrated(lane) ? "probability" : "decoder";
  const alone = isCalibrated(lane) ? "how often a moment of such a decoder score was right" : decoderFormula(lane).toLowerCase();
  const formula = `Score = ${isVerified(lane) ? `${(1 - beta).toFixed(2)} · ${own} + ${beta.toFixed(2)} · verifier` : alone}`;
  return `Encoder: ${lane.encoder}. Verifier: ${lane.verifier}. ${formula}.`;
}

function section(lane) {
  const part = make("section", "qd-section");
  lane.section = part;
  part.tabIndex = -1;
  if (several()) part.append(sectionHead(lane));
  if (!lane.rows.length) return part;
  const verified = isVerified(lane);
  const body = make("div", "qd-body");
  const table = make("div", verified ? "qd-table qd-with-scatter" : "qd-table");
  table.append(candidateTable(lane), tableFoot(lane));
  body.append(table);
  if (verified) body.append(scatter(lane));
  part.append(body);
  return part;
}

function sectionHead(lane) {
  const top = make("div", "qd-section-head");
  top.dataset.kind = lane.message.kind;
  const words = make("p", "qd-long");
  words.append(make("strong", "", answerTitle(lane, lane.rows)), make("span", "", ` ${lane.message.detail}`));
  words.title = lane.message.detail;
  top.append(oneLine("h3", "", lane.label));
  if (lane.how) top.append(oneLine("p", "qd-how qd-long", lane.how));
  top.append(words);
  for (const note of lane.notes) top.append(make("p", "qd-note", note));
  return top;
}

function candidateTable(lane) {
  const shown = columns(lane);
  const grid = make("table");
  grid.setAttribute("aria-label", `Candidates for ${lane.label}`);
  const headRow = make("tr");
  for (const column of [{ head: "Play" }, { head: "Export" }, ...shown]) {
    const cell = make("th", "", column.head);
    if (column.help) cell.title = column.help;
    cell.scope = "col";
    headRow.append(cell);
  }
  const header = make("thead");
  header.append(headRow);
  const body = make("tbody");
  body.append(...shownRows(lane).map((row) => tableRow(lane, row, shown)));
  grid.append(header, body);
  return wideTable(lane, grid);
}

// ---- a table wider than the screen: its edge fades where there is more, and a button goes there ----

function wideTable(lane, grid) {
  const frame = make("div", "qd-wide");
  const scroller = make("div", "qd-scroll");
  scroller.append(grid);
  scroller.setAttribute("aria-label", `Candidates for ${lane.label}, scrolls sideways`);
  const more = press("qd-columns", "", () => {
    const back = frame.dataset.more === "before";
    scroller.scrollTo({ left: back ? 0 : scroller.scrollLeft + 0.7 * scroller.clientWidth, behavior: calm() ? "auto" : "smooth" });
  });
  const update = () => {
    const room = scroller.scrollWidth - scroller.clientWidth;
    const before = scroller.scrollLeft > 2;
    const after = scroller.scrollLeft < room - 2;
    frame.dataset.more = before && after ? "both" : before ? "before" : after ? "after" : "none";
    more.hidden = !before && !after;
    more.textContent = after ? "More columns →" : "← First columns";
    if (more.hidden) scroller.removeAttribute("tabindex");
    else scroller.tabIndex = 0; // the keyboard scrolls it, too
    scroller.setAttribute("role", more.hidden ? "presentation" : "group");
    if (scroller.clientWidth) lane.scrolled = scroller.scrollLeft;
  };
  scroller.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(() => {
    scroller.scrollLeft = lane.scrolled ?? 0; // a new ranking draws the table anew
    update();
  }).observe(scroller);
  frame.append(more, scroller);
  return frame;
}

function tableRow(lane, row, shown) {
  const line = make("tr", row.guess ? "qd-guessed" : row.likely ? "" : "qd-faint");
  line.addEventListener("mouseenter", () => showBand(row));
  line.addEventListener("mouseleave", () => showBand(audio.paused ? null : playing));
  const button = make("button", "qd-play");
  button.type = "button";
  button.dataset.lane = lane.number;
  button.setAttribute("aria-label", `Play moment ${row.rank}, ${windowWords(row)}`);
  button.append(icon("play"));
  playable(button, row, lane.number);
  const box = make("input", "qd-choose");
  box.type = "checkbox";
  box.checked = isChosen(lane, row);
  box.setAttribute("aria-label", `Export moment ${row.rank}, ${windowWords(row)}`);
  box.addEventListener("change", () => choose([[lane, row, box.checked]]));
  const name = make("label", "qd-choose-label");
  name.append(box);
  for (const content of [button, name, ...shown.map((column) => column.cell(row))]) {
    const cell = make("td");
    cell.append(content);
    line.append(cell);
  }
  if (row.changed && !calm()) line.animate([{ backgroundColor: "rgba(20, 184, 166, 0.3)" }, {}], { duration: 900 });
  return line;
}

function tableFoot(lane) {
  const foot = make("div", "qd-foot");
  const hidden = lane.rows.filter((row) => !row.likely).length;
  if (hidden) {
    const noun = hidden === 1 ? "candidate" : "candidates";
    const words = lane.showAll ? `Hide the ${hidden} less likely ${noun}` : `Show ${hidden} less likely ${noun}`;
    const more = press("qd-more", words, () => {
      lane.showAll = !lane.showAll;
      drawAnswers();
      lane.section.querySelector(".qd-more")?.focus();
    });
    more.setAttribute("aria-expanded", String(lane.showAll));
    foot.append(more);
  }
  lane.tally = make("span", "qd-tally");
  const choices = make("span", "qd-choices");
  const noun = several() ? ` of ${lane.label}` : "";
  for (const [words, wanted] of [
    ["all", () => true],
    ["likely", (row) => lane.found && row.likely],
    ["none", () => false],
  ]) {
    const button = press("qd-pick", words, () => {
      if (words === "all") lane.showAll = true; // nothing is chosen unseen
      choose(lane.rows.map((row) => [lane, row, wanted(row)]));
      drawAnswers();
      lane.section.querySelectorAll(".qd-pick")[["all", "likely", "none"].indexOf(words)].focus();
    });
    button.setAttribute("aria-label", `Choose ${words}${noun} for export`);
    choices.append(button);
  }
  choices.prepend(lane.tally);
  foot.append(choices);
  showTally(lane);
  return foot;
}

// ---- what is chosen for export ----

const keyOf = (lane, row) => `${lane.number}:${row.candidate}`;
const isChosen = (lane, row) => (choice ? choice.has(keyOf(lane, row)) : lane.found && row.likely);

function showTally(lane) {
  const count = lane.rows.filter((row) => isChosen(lane, row)).length;
  lane.tally.textContent = `Export ${count} of ${lane.rows.length}:`;
}

/** Take a list of [lane, row, wanted], and tell Python the whole choice; until then Python takes what is likely. */
function choose(changes) {
  choice ??= new Set(answers.flatMap((lane) => lane.rows.filter((row) => isChosen(lane, row)).map((row) => keyOf(lane, row))));
  for (const [lane, row, wanted] of changes) {
    if (wanted) choice.add(keyOf(lane, row));
    else choice.delete(keyOf(lane, row));
  }
  for (const lane of answers) if (lane.rows.length) showTally(lane);
  trigger("select", { chosen: [...choice].map((key) => key.split(":").map(Number)) });
}
