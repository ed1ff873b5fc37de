// Small parts that the player is built of: elements, icons, buttons. Text from outside goes in through textContent only.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  play: "M4 2.5v11l9.5-5.5z",
  pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
  closer: "M7 2h2v5h5v2H9v5H7V9H2V7h5z",
  further: "M2 7h12v2H2z",
  whole: "M1 2h1.6v12H1zM13.4 2H15v12h-1.6zM3.4 8l3-2.6v1.8h3.2V5.4l3 2.6-3 2.6V8.8H6.4v1.8z",
  loop: "M4.5 4h6V1.8L14.2 5l-3.7 3.2V6h-6v2.5h-2V5q0-1 1-1zM11.5 12h-6v2.2L1.8 11l3.7-3.2V10h6V7.5h2V11q0 1-1 1z",
};

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
  const node = draw("svg", { viewBox: "0 0 16 16", width: "0.75rem", height: "0.75rem", "aria-hidden": "true" });
  node.append(draw("path", { d: ICONS[name], fill: "currentColor" }));
  return node;
}

/** A button with words, or with an icon and words for those who do not see it. */
function press(className, words, action, iconName) {
  const button = make("button", className);
  button.type = "button";
  if (iconName) {
    button.append(icon(iconName));
    button.setAttribute("aria-label", words);
    button.title = words;
  } else button.textContent = words;
  button.addEventListener("click", action);
  return button;
}

/** Text of any length on one line; the whole of it stands in the tooltip. */
function oneLine(tag, className, text) {
  const node = make(tag, className, text);
  node.title = text;
  return node;
}

const calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

/** How much larger than usual the visitor's text is. */
const textScale = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
