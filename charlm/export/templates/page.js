// The page: what is typed goes into the model, what it says is shown.

const MOST_BARS = 40;
const MOST_MILLISECONDS = 40; // that the page does not answer for
const MOST_BITS = 8; // of a surprise that is shown by its colour
const NAMES = { " ": "space", "\n": "new line", "\t": "tab" };

const description = JSON.parse(document.getElementById("model").textContent);
const { symbols, boundary, unknown, tokens_are: tokensAre, context_length: contextLength } = description;
const areBytes = tokensAre === "bytes";
const tokenOf = new Map(symbols.map((symbol, token) => [symbol, token]));
const logitsAfter = createModel(description);
const element = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (found) => [found.id, found]));

/** An element with text in it, which is never read as HTML. */
function created(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** How a symbol is shown: itself, or a name where it would not be seen. */
function label(token) {
  const symbol = symbols[token];
  if (token === boundary) return created("span", "named", "end");
  if (NAMES[symbol] || !/^[\p{L}\p{N}\p{P}\p{S}]/u.test(symbol)) {
    const code = `U+${symbol.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    return created("span", "named", NAMES[symbol] ?? code);
  }
  return created("bdi", "symbol", symbol);
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.001 ? 2 : 1)} %`;
}

/** The tokens of a text; an Error says which character is not in the vocabulary. */
function encoded(text) {
  if (areBytes) return Array.from(new TextEncoder().encode(text));
  return Array.from(text, (character) => {
    const token = tokenOf.get(character) ?? unknown;
    if (token === null) throw new Error(`“${character}” is not among the model's characters.`);
    return token;
  });
}

function textOf(tokens) {
  return areBytes ? new TextDecoder().decode(Uint8Array.from(tokens)) : tokens.map((token) => symbols[token]).join("");
}

/** The last T tokens, after T boundaries. */
function contextOf(tokens) {
  return [...Array(contextLength).fill(boundary), ...tokens.slice(-contextLength)].slice(-contextLength);
}

/** What the fields say; an Error where one of them makes no sense. */
function options() {
  for (const field of [element["top-k"], element.n, element.seed, element["max-length"]]) {
    const name = document.querySelector(`label[for="${field.id}"]`).textContent;
    if (!field.checkValidity()) throw new Error(`${name}: ${field.validationMessage}`);
  }
  return {
    tokens: encoded(element.text.value),
    temperature: Number(element.temperature.value),
    topK: element["top-k"].value === "" ? symbols.length : Number(element["top-k"].value),
  };
}

function showNext({ tokens, temperature, topK }) {
  const p = probabilities(logitsAfter(contextOf(tokens)), temperature, topK);
  const order = ranked(p);
  const shown = order.slice(0, MOST_BARS);
  const bars = shown.map((token) => {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.token = token;
    button.dataset.probability = p[token];
    button.disabled = token === boundary || (areBytes && token > 127); // a text cannot have a part of a character
    const bar = created("span", "bar");
    bar.style.setProperty("--share", p[token] / p[order[0]]);
    button.append(label(token), bar, created("span", "percent", percent(p[token])));
    row.append(button);
    return row;
  });
  element.next.replaceChildren(...bars);
  const rest = order.slice(MOST_BARS).reduce((sum, token) => sum + p[token], 0);
  const left = order.length - shown.length;
  element.others.textContent = left > 0 ? `${left.toLocaleString("en")} others together: ${percent(rest)}` : "";
  const best = order.slice(0, 3).map((token) => `${label(token).textContent} ${percent(p[token])}`);
  element["most-probable"].textContent = `Most probable: ${best.join(", ")}`;
}

/** The surprise of each character, -log2 of its probability, whatever the temperature. */
function showScore({ tokens }) {
  const targets = [...tokens, boundary];
  const before = (i) => contextOf(tokens.slice(Math.max(0, i - contextLength), i));
  const nats = targets.map((token, i) => -logProbabilities(logitsAfter(before(i)))[token]);
  const cells = targets.map((token, i) => {
    const cell = document.createElement("li");
    const bits = nats[i] / Math.LN2;
    cell.style.setProperty("--share", Math.min(1, bits / MOST_BITS));
    cell.append(label(token), " ", created("span", "bits", bits.toFixed(1)));
    return cell;
  });
  element.surprises.replaceChildren(...cells);
  const total = nats.reduce((a, b) => a + b);
  const bits = total / Math.LN2;
  element.score.dataset.logProbability = -total;
  element.score.textContent =
    `In bits, the end included: ${bits.toFixed(1)} in all, ${(bits / nats.length).toFixed(2)} each. ` +
    `Log-probability ${(-total).toFixed(3)}.`;
}

function show() {
  element["temperature-value"].textContent = Number(element.temperature.value).toFixed(2);
  element.problem.textContent = "";
  try {
    const given = options();
    showNext(given);
    showScore(given);
  } catch (error) {
    element.problem.textContent = error.message;
  }
}

function drawnText(tokens) {
  const row = document.createElement("li");
  const button = created("button", "", textOf(tokens));
  button.type = "button";
  button.title = "Take it as the beginning";
  if (tokens.length === 0) button.append(created("span", "named", "(nothing)"));
  row.append(button);
  return row;
}

let draws = 0;

async function drawTexts(event) {
  event.preventDefault();
  show();
  if (element.problem.textContent !== "") return;
  const { tokens, temperature, topK } = options();
  const [n, maxLength, stop] = [Number(element.n.value), Number(element["max-length"].value), element.stop.checked];
  const typed = element.seed.value;
  const seed = typed === "" ? crypto.getRandomValues(new BigUint64Array(1))[0] : BigInt.asUintN(64, BigInt(typed));
  const number = ++draws;
  element.drawn.replaceChildren();
  element.drawn.setAttribute("aria-busy", "true");
  let pause = performance.now() + MOST_MILLISECONDS;
  for (let text = 0; text < n; text++) {
    const drawn = tokens.slice();
    for (let position = 0; drawn.length < maxLength; position++) {
      if (performance.now() > pause) {
        await new Promise((resolve) => setTimeout(resolve));
        if (draws !== number) return; // what was asked for since is drawn instead
        pause = performance.now() + MOST_MILLISECONDS;
      }
      const p = probabilities(logitsAfter(contextOf(drawn)), temperature, topK);
      const token = draw(p, randomWords(seed, text, position));
      if (stop && token === boundary) break;
      drawn.push(token);
    }
    element.drawn.append(drawnText(drawn));
  }
  element.drawn.setAttribute("aria-busy", "false");
}

function begin(text) {
  element.text.value = text;
  show();
}

// Only lines of text have no line breaks in them.
if (tokenOf.has("\n")) {
  const area = document.createElement("textarea");
  for (const attribute of element.text.attributes) area.setAttribute(attribute.name, attribute.value);
  area.rows = 2;
  element.text.replaceWith(area);
  element.text = area;
}
const weights = Object.values(description.tensors).reduce((sum, tensor) => sum + tensor.size, 0);
element.facts.textContent =
  `${description.kind}: ${weights.toLocaleString("en")} numbers, ${symbols.length.toLocaleString("en")} ${tokensAre}; ` +
  `it reads the last ${contextLength === 1 ? "one" : contextLength}`;
document.addEventListener("input", show);
element.form.addEventListener("submit", drawTexts);
element.next.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) begin(element.text.value + symbols[button.dataset.token]);
});
element.drawn.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) begin(button.querySelector(".named") ? "" : button.textContent);
});
show();
