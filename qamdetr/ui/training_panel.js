// The list of runs and sets of scenes, and one of them in full. Asks the server for news only while the panel is in sight.

const NEWS_MILLISECONDS = 2000;
const IDLE_MILLISECONDS = 10000; // nothing runs: a run that is started elsewhere may still appear
const STATES = { running: "running", finished: "finished", stopped: "stopped", failed: "failed" };
const ACTIONS = { stop: "Stop", resume: "Resume", use: "Use in Find" };

const root = element.querySelector(".qt-panel");
const list = make("div", "qt-list");
list.setAttribute("role", "group");
list.setAttribute("aria-label", "Runs and scenes");
const message = make("p", "qt-told");
message.setAttribute("role", "status");
const detail = make("div", "qt-detail");
const empty = make("p", "qt-empty", "Looking for runs …");
root.append(message, empty, list, detail);

let view = { items: [], selected: "", detail: null, running: false, message: "" };
let drawn = ""; // what is on the page, so that nothing is drawn twice
let asking = false;
let lastAsked = 0;

function show(next, keepMessage = false) {
  if (!next?.items) return; // nothing is known yet
  const before = view;
  view = next;
  // What was told about the one in full holds until something happens to it.
  const same = before.selected === next.selected && before.detail?.state === next.detail?.state;
  if (keepMessage) view = { ...next, message: same ? before.message : "" };
  message.textContent = view.message || "";
  empty.textContent = "No runs yet. Make scenes from your clips, then train on them; what runs is shown here.";
  empty.hidden = view.items.length > 0;
  list.hidden = detail.hidden = view.items.length === 0;
  const now = JSON.stringify([view.items, view.selected, view.detail]);
  if (now !== drawn) {
    drawn = now;
    drawList();
    drawDetail();
  }
  const outline = (items) => JSON.stringify(items.map((item) => [item.id, item.state]));
  if (outline(before.items) !== outline(view.items)) trigger("news", {});
}

function drawList() {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  const top = list.scrollTop;
  list.replaceChildren(
    ...view.items.map((item) => {
      const button = make("button", "qt-item");
      button.type = "button";
      button.dataset.id = item.id;
      button.dataset.state = item.state;
      button.setAttribute("aria-pressed", String(item.id === view.selected));
      const state = make("span", "qt-state", item.share !== null && item.state === "running" ? `${Math.floor(100 * item.share)} %` : STATES[item.state]);
      button.append(make("span", "qt-name", item.name), state, make("span", "qt-brief", item.brief));
      button.addEventListener("click", () => choose(item.id));
      return button;
    }),
  );
  list.scrollTop = top;
  if (focused !== null) [...list.children].find((button) => button.dataset.id === focused)?.focus({ preventScroll: true });
}

function drawDetail() {
  const one = view.detail;
  const focused = detail.contains(document.activeElement) ? document.activeElement.dataset.action : null;
  const open = detail.querySelector("details")?.open ?? false;
  detail.replaceChildren();
  if (!one) return;
  const head = make("div", "qt-head");
  head.append(make("h3", "", one.name), make("span", `qt-badge qt-${one.state}`, STATES[one.state]));
  const buttons = make("div", "qt-actions");
  for (const action of one.actions) {
    const button = make("button", `qt-action qt-${action}`, ACTIONS[action]);
    button.type = "button";
    button.dataset.action = action;
    button.addEventListener("click", () => act(action, button));
    buttons.append(button);
  }
  head.append(buttons);
  detail.append(head);
  if (one.state === "running" && one.stage) detail.append(progressOf(one));
  if (one.reason) detail.append(make("p", "qt-reason", one.reason));
  CHART.width = root.clientWidth < 620 ? 340 : 520; // letters keep their size on a phone
  if (one.charts.length) {
    const charts = make("div", "qt-charts");
    charts.append(...one.charts.map(drawChart));
    detail.append(charts);
  }
  if (one.facts.length) {
    const facts = make("dl", "qt-facts");
    for (const [label, value] of one.facts) facts.append(make("dt", "", label), make("dd", "", value));
    detail.append(facts);
  }
  if (one.log.length) {
    const more = make("details", "qt-log");
    more.open = open;
    more.append(make("summary", "", "Last lines of the log"), make("pre", "", one.log.join("\n")));
    detail.append(more);
  }
  if (focused) detail.querySelector(`[data-action="${focused}"]`)?.focus({ preventScroll: true });
}

function progressOf(one) {
  const box = make("div", "qt-progress");
  const bar = make("div", "qt-bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", one.stage);
  const fill = make("span");
  if (one.share === null) {
    bar.classList.add("qt-unknown");
  } else {
    bar.setAttribute("aria-valuenow", String(Math.round(100 * one.share)));
    fill.style.width = `${(100 * one.share).toFixed(1)}%`;
  }
  bar.append(fill);
  const left = one.seconds_left === null ? "" : ` · about ${clockLeft(one.seconds_left)} left${one.charts.length ? "" : " in this step"}`;
  box.append(make("p", "", one.stage + left), bar);
  return box;
}

function choose(id) {
  view = { ...view, selected: id, message: "" };
  ask();
}

async function act(action, button) {
  if (action === "use") {
    trigger("select", { name: view.selected });
    return;
  }
  button.disabled = true;
  await call(() => server.act({ action, selected: view.selected }));
}

async function ask() {
  if (asking) return;
  const wanted = view.selected;
  await call(() => server.poll({ selected: wanted }), true);
  if (view.selected !== wanted) ask(); // another was pressed in between
}

async function call(question, keepMessage = false) {
  asking = true;
  lastAsked = Date.now();
  const wanted = view.selected;
  try {
    const answer = await question();
    // What was pressed while the answer was on its way counts.
    if (view.selected === wanted) show(answer, keepMessage);
  } catch {
    message.textContent = "The server does not answer; what runs goes on by itself. Reload the page when the app is up again.";
  } finally {
    asking = false;
  }
}

const isInSight = () => document.visibilityState === "visible" && root.isConnected && root.offsetParent !== null;
const timer = setInterval(() => {
  if (!root.isConnected) clearInterval(timer);
  else if (!asking && isInSight() && Date.now() - lastAsked >= (view.running ? NEWS_MILLISECONDS : IDLE_MILLISECONDS)) ask();
}, 500);
watch("value", () => {
  if (props.value?.refused) {
    // Nothing was started: whoever filled the form in stays there to mend it, and what is shown stays.
    view = { ...view, message: props.value.message };
    message.textContent = view.message;
    return;
  }
  show(props.value);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (props.value?.message) root.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
});
show(props.value);
