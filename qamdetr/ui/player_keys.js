// The keyboard. Keys count only while the focus is inside the player, and never while something is being typed.

const SEEK_SECONDS = 1;
const LEAP_SECONDS = 10;
const KEYS = [
  ["Space", "play or pause"],
  ["j / k", "next or previous moment, best first"],
  ["J / K", "next or previous answer"],
  ["Enter", "play the moment in focus"],
  ["← / →", "one second back or forward"],
  ["Page keys", "ten seconds, on the waveform"],
  ["L", "loop the moment, on or off"],
  ["+ / −", "look closer or from further away"],
  ["Z", "zoom to the moment in focus"],
  ["0", "show the whole recording"],
  ["Shift ← / →", "move the part in view"],
  ["? / Esc", "show or hide these keys"],
];

function fillHelp() {
  const list = make("dl");
  for (const [keys, words] of KEYS) {
    const entry = make("div");
    entry.append(make("dt", "", keys), make("dd", "", words));
    list.append(entry);
  }
  help.append(list, make("p", "", "Ctrl and the wheel, or two fingers, zoom; a drag moves the part in view. The keys work while the focus is in the player."));
  help.tabIndex = -1;
  help.id = "qamdetr-player-keys";
  help.setAttribute("role", "note");
  help.setAttribute("aria-label", "Keys of the player");
  helpButton.setAttribute("aria-controls", help.id);
  helpButton.setAttribute("aria-expanded", "false");
}

let beforeHelp = null; // what had the focus when the keys were asked for by key

function showHelp(on, takeFocus) {
  if (on) beforeHelp = takeFocus ? document.activeElement : helpButton;
  help.hidden = !on;
  helpButton.setAttribute("aria-expanded", String(on));
  if (takeFocus) (on ? help : beforeHelp)?.focus();
}

const isField = (node) => node.matches("input, textarea, select") || node.isContentEditable;

/** The moment in focus, as { start, end }, or null. */
function focusedMoment() {
  const data = document.activeElement?.dataset;
  return data?.start === undefined ? null : { start: Number(data.start), end: Number(data.end) };
}

function stepMoment(steps) {
  const lane = answers[active];
  const rows = lane ? shownRows(lane) : [];
  if (!rows.length) return;
  const focused = focusedMoment() ?? playing;
  const now = rows.findIndex((row) => focused && row.start === focused.start && row.end === focused.end);
  const row = rows[now < 0 ? (steps > 0 ? 0 : rows.length - 1) : clamp(now + steps, 0, rows.length - 1)];
  setRange(revealed(range, row.start, row.end, view.duration));
  drawRange(); // a moment out of view cannot take the focus
  buttonOf(lane, row)?.focus({ preventScroll: true });
}

const buttonOf = (lane, row) =>
  [...lanes.querySelectorAll(`.qd-moment[data-lane="${lane.number}"]`)].find((node) => Number(node.dataset.start) === row.start && Number(node.dataset.end) === row.end);

function stepLane(steps) {
  const next = clamp(active + steps, 0, answers.length - 1);
  const [first] = answers[next] ? shownRows(answers[next]) : [];
  active = next;
  if (!first) return;
  setRange(revealed(range, first.start, first.end, view.duration));
  drawRange();
  buttonOf(answers[next], first)?.focus();
}

function zoomToMoment() {
  const row = focusedMoment() ?? playing;
  if (!row) return;
  const length = row.end - row.start;
  setRange(placed(row.start - length, Math.max(3 * length, Math.min(LEAST_SECONDS, view.duration)), view.duration));
}

function loopMoment() {
  setLooping(!looping);
  const focused = focusedMoment();
  if (looping && focused && audio.paused) playMoment(focused);
}

const ACTIONS = {
  j: () => stepMoment(1),
  k: () => stepMoment(-1),
  J: () => stepLane(1),
  K: () => stepLane(-1),
  l: loopMoment,
  L: loopMoment,
  z: zoomToMoment,
  Z: zoomToMoment,
  "+": () => zoomBy(2),
  "=": () => zoomBy(2),
  "-": () => zoomBy(0.5),
  "−": () => zoomBy(0.5),
  0: showWhole,
  "?": () => showHelp(help.hidden, true),
};

/** What the arrows and their kin do, in seconds to seek to, or null. */
function seekTarget(event) {
  const onWave = event.target === wave;
  const now = audio.currentTime;
  const steps = { ArrowLeft: -SEEK_SECONDS, ArrowRight: SEEK_SECONDS };
  const waveSteps = { ArrowDown: -SEEK_SECONDS, ArrowUp: SEEK_SECONDS, PageDown: -LEAP_SECONDS, PageUp: LEAP_SECONDS };
  if (event.key in steps) return now + steps[event.key];
  if (onWave && event.key in waveSteps) return now + waveSteps[event.key];
  return onWave ? ({ Home: 0, End: view.duration }[event.key] ?? null) : null;
}

/** Do what a key says; false where it is not the player's. */
function act(event) {
  const { key, target } = event;
  const sideways = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (sideways && (event.shiftKey || target === overview)) panBy(sideways / 4);
  else if (key === " ") {
    // Buttons that play no moment keep the key for themselves.
    if (target.closest("button") && !focusedMoment()) return false;
    toggleAny(focusedMoment());
  } else if (key === "Enter" && focusedMoment() && target.tagName !== "BUTTON") playMoment(focusedMoment());
  else if (key === "Escape" && !help.hidden) showHelp(false, true);
  else if (key in ACTIONS) ACTIONS[key]();
  else {
    const second = seekTarget(event);
    if (second === null) return false;
    seek(second);
  }
  return true;
}

root.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (view.state === "empty" || isField(event.target) || event.target.matches(".qd-scroll")) return;
  if (act(event)) event.preventDefault();
});
root.addEventListener("keyup", (event) => {
  // Some browsers press a button when Space comes up again, whatever became of its way down.
  if (event.key === " " && focusedMoment()) event.preventDefault();
});
fillHelp();
