// Putting a view on the page, and what changes it: an answer, the weight of the verifier, a new width. Runs last of the scripts.

busyBar.sweep = busyBar.animate([{ transform: "translateX(-100%)" }, { transform: "translateX(350%)" }], { duration: 1400, iterations: Infinity });

function showBusy(next) {
  const known = next.share !== null && next.share !== undefined;
  const share = known ? `${Math.round(100 * next.share)} %` : "";
  if (busyText.textContent !== next.busy) busyText.textContent = next.busy; // said aloud once per stage, not at every step
  busyText.title = next.busy;
  busyLeft.textContent = share;
  busyTrack.classList.toggle("qd-unknown", !known);
  busyTrack.setAttribute("aria-label", next.busy);
  if (known) {
    busyTrack.setAttribute("aria-valuenow", String(Math.round(100 * next.share)));
    busyTrack.setAttribute("aria-valuetext", busyLeft.textContent);
    busyBar.style.width = share.replace(" ", "");
  } else {
    for (const name of ["aria-valuenow", "aria-valuetext"]) busyTrack.removeAttribute(name);
    busyBar.style.width = "";
  }
  if (known || calm()) busyBar.sweep.cancel();
  else busyBar.sweep.play();
  busyCancel.hidden = !next.cancel;
  busyCancel.disabled = false;
}

// ---- the message: one answer in full, or a line for each of several ----

function drawMessage() {
  message.hidden = view.state !== "result";
  if (message.hidden) return;
  message.classList.toggle("qd-several", several());
  if (several()) {
    message.dataset.kind = answers.some((lane) => lane.message.kind === "found") ? "found" : "absent";
    message.replaceChildren(...answers.map(messageLine));
    if (view.shared_how) message.append(make("p", "qd-note", view.shared_how));
    return;
  }
  const [lane] = answers;
  if (!lane) return;
  const detail = make("span", "qd-long", lane.message.detail);
  detail.title = lane.message.detail;
  message.dataset.kind = lane.message.kind;
  message.replaceChildren(make("strong", "", answerTitle(lane, lane.rows)), detail);
  if (lane.how) message.append(make("span", "qd-note", `Model ${lane.how}`));
  for (const note of lane.notes) message.append(make("span", "qd-note", note));
}

function messageLine(lane) {
  const line = make("button", "qd-line");
  line.type = "button";
  line.dataset.kind = lane.message.kind;
  line.append(oneLine("span", "qd-line-label", lane.label), make("strong", "", answerTitle(lane, lane.rows)));
  const overlap = iouWords(lane);
  if (overlap) line.append(make("span", "qd-line-iou", overlap));
  line.addEventListener("click", () => {
    active = lane.number;
    lane.section.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
    lane.section.focus({ preventScroll: true });
  });
  return line;
}

// ---- answers ----

function rankAnswers() {
  for (const lane of answers) {
    const before = new Map(lane.rows.map((row) => [row.candidate, row.rank]));
    lane.rows = ranked(lane, beta);
    for (const row of lane.rows) row.changed = before.size > 0 && before.get(row.candidate) !== row.rank;
  }
}

function drawAnswers() {
  drawLanes();
  drawSections();
  showPlaying();
}

/** Take the lanes of a view; where they are the ones on the page, everything the visitor has set stays. */
function takeAnswers() {
  const given = view.state === "result" ? view.lanes : [];
  const answer = JSON.stringify([view.audio?.url, given]);
  const fresh = answer !== answered;
  answered = answer;
  if (!fresh) return false;
  answers = given.map((lane, number) => ({ ...lane, number, rows: [], showAll: false }));
  beta = view.beta ?? 0;
  choice = null;
  active = 0;
  rankAnswers();
  return given.length > 0;
}

function show(next) {
  const working = Boolean(next?.busy);
  busy.hidden = !working;
  root.setAttribute("aria-busy", String(working));
  if (working) {
    showBusy(next); // what is on the page stays until the answer is there
    empty.hidden = true;
    return;
  }
  const before = view;
  view = next || { state: "empty" };
  root.dataset.state = view.state;
  empty.hidden = view.state !== "empty";
  stage.hidden = view.state === "empty";
  openAudio(before);
  const fresh = takeAnswers();
  drawMessage();
  if (view.state === "empty") return;
  title.textContent = view.title;
  title.title = view.title;
  if (fresh || before.audio?.url !== view.audio.url) range = { from: 0, to: view.duration };
  drawWave();
  drawAnswers();
  drawRange();
  if (fresh) bringIntoSight();
}

function openAudio(before) {
  if (view.audio?.url === before.audio?.url) return;
  playing = null;
  trouble.textContent = "";
  audio.pause();
  if (view.audio) audio.src = view.audio.url;
  else audio.removeAttribute("src");
}

function bringIntoSight() {
  if (message.getBoundingClientRect().top < window.innerHeight * 0.7) return;
  message.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
}

function rerankAt(weight) {
  if (view.state !== "result" || !answers.some(isVerified)) return;
  const titles = () => answers.map((lane) => `${answerTitle(lane, lane.rows)} ${iouWords(lane)}`).join();
  const before = titles();
  beta = weight;
  rankAnswers();
  drawAnswers();
  if (titles() !== before) drawMessage();
  const moved = answers.filter(isVerified).flatMap((lane) => lane.rows).filter((row) => row.moved).length;
  const noun = moved === 1 ? "candidate ranks" : "candidates rank";
  said.textContent = `β ${beta.toFixed(2)}: ${moved || "no"} ${noun} differently than by the decoder alone.`;
}

window.addEventListener("qamdetr-beta", (event) => rerankAt(weightOf(event.detail, beta)));
busyCancel.addEventListener("click", () => {
  busyCancel.disabled = true;
  trigger("cancel", {});
});
let drawnWidth = 0;
new ResizeObserver(() => {
  // Only a new width changes the drawing; the height follows from it.
  if (view.state === "empty" || plot.clientWidth === drawnWidth) return;
  drawnWidth = plot.clientWidth;
  drawRange();
}).observe(plot);
watch("value", () => show(props.value));
show(props.value);
