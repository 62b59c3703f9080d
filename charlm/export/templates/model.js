// The model, in plain JavaScript: what is below is all that it takes to run it.

/**
 * The numbers of a tensor, which are little-endian in base64, as all browsers' arrays are in memory.
 * @returns {Float32Array | Float64Array}
 */
function decoded(tensor) {
  const bytes = Uint8Array.from(atob(tensor.data), (character) => character.charCodeAt(0));
  return tensor.dtype === "float64" ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer);
}

/**
 * A function from the last T tokens to the logits of the next one. Sums are in double, the numbers of JavaScript.
 * @param {object} description what is in the page: kind, sizes and tensors
 * @returns {(context: number[]) => Float64Array}
 */
function createModel(description) {
  const V = description.symbols.length;
  const T = description.context_length;
  const tensors = Object.fromEntries(
    Object.entries(description.tensors).map(([name, tensor]) => [name, decoded(tensor)]),
  );

  // How often each symbol has followed the last one, as a share of all that have; the logits are log-probabilities.
  function countBigram(context) {
    const row = tensors.counts.subarray(context[T - 1] * V, (context[T - 1] + 1) * V);
    let total = 0;
    for (const count of row) total += count + description.smoothing;
    return Float64Array.from(row, (count) => Math.log(total > 0 ? (count + description.smoothing) / total : 1 / V));
  }

  // A one-hot symbol times a matrix is a row of that matrix.
  function bigram(context) {
    return Float64Array.from(tensors.weight.subarray(context[T - 1] * V, (context[T - 1] + 1) * V));
  }

  // Bengio et al. 2003: logits = weight2 tanh(weight1 x + bias1) + bias2 [+ direct_weight x], where x has the
  // embeddings of the context, one after the other; [softcap tanh(logits / softcap)].
  function mlp(context) {
    const D = tensors.embedding.length / V;
    const H = tensors.bias1.length;
    const x = new Float64Array(T * D);
    context.forEach((token, t) => x.set(tensors.embedding.subarray(token * D, (token + 1) * D), t * D));
    const h = new Float64Array(H);
    for (let j = 0; j < H; j++) h[j] = Math.tanh(tensors.bias1[j] + product(tensors.weight1, j, x));
    const logits = new Float64Array(V);
    for (let v = 0; v < V; v++) {
      let sum = tensors.bias2[v] + product(tensors.weight2, v, h);
      if (tensors.direct_weight) sum += product(tensors.direct_weight, v, x);
      logits[v] = description.softcap === null ? sum : description.softcap * Math.tanh(sum / description.softcap);
    }
    return logits;
  }

  function product(matrix, row, vector) {
    let sum = 0;
    for (let i = 0; i < vector.length; i++) sum += matrix[row * vector.length + i] * vector[i];
    return sum;
  }

  return { "count-bigram": countBigram, bigram, mlp }[description.kind];
}

/** The tokens by rank: the highest value first, of equals the first one. */
function ranked(values) {
  return Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
}

/**
 * softmax(logits / temperature) over the topK largest logits, 0 elsewhere; temperature 0 is all for the largest.
 * @returns {Float64Array}
 */
function probabilities(logits, temperature, topK) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const p = logits.map((logit) => (temperature > 0 ? Math.exp((logit - highest) / temperature) : 0));
  const order = temperature === 0 || topK < logits.length ? ranked(logits) : [];
  if (temperature === 0) p[order[0]] = 1;
  for (const token of order.slice(topK)) p[token] = 0;
  const sum = p.reduce((a, b) => a + b);
  return p.map((weight) => weight / sum);
}

/** The natural logarithms of softmax(logits). */
function logProbabilities(logits) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - highest), 0);
  return logits.map((logit) => logit - highest - Math.log(sum));
}

/**
 * The two random words that draw symbol number `position` of text number `text`, the more significant one first:
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), as `charlm sample` has it.
 * @param {bigint} seed of 64 bits
 */
function randomWords(seed, text, position) {
  const block = BigInt(position >>> 1);
  let words = [block & 0xffffffffn, block >> 32n, BigInt(text) & 0xffffffffn, BigInt(text) >> 32n];
  let key0 = seed & 0xffffffffn;
  let key1 = seed >> 32n;
  for (let round = 0; round < 10; round++) {
    const product0 = 0xd2511f53n * words[0];
    const product1 = 0xcd9e8d57n * words[2];
    words = [
      (product1 >> 32n) ^ words[1] ^ key0,
      product1 & 0xffffffffn,
      (product0 >> 32n) ^ words[3] ^ key1,
      product0 & 0xffffffffn,
    ];
    key0 = (key0 + 0x9e3779b9n) & 0xffffffffn;
    key1 = (key1 + 0xbb67ae85n) & 0xffffffffn;
  }
  return words.slice((position % 2) * 2).map(Number);
}

/**
 * Draws a token by an alias table in exact integers (Vose 1991), as `charlm sample` does: all columns are as likely,
 * and in each the token itself has its share, and one other the rest.
 */
function draw(p, [high, low]) {
  const COLUMN = 2 ** 32;
  const tokens = Array.from(p.keys()).filter((token) => p[token] > 0);
  const size = tokens.length;
  const sum = p.reduce((a, b) => a + b);
  const shares = tokens.map((token) => Math.floor((p[token] / sum) * (size * COLUMN)));
  const most = shares.indexOf(shares.reduce((a, b) => Math.max(a, b)));
  shares[most] += size * COLUMN - shares.reduce((a, b) => a + b); // what rounding down has left
  const alias = Array.from(tokens.keys());
  const below = alias.filter((column) => shares[column] < COLUMN);
  const others = alias.filter((column) => shares[column] >= COLUMN);
  while (below.length > 0) {
    const column = below.pop();
    const other = others[others.length - 1];
    alias[column] = other;
    shares[other] -= COLUMN - shares[column];
    if (shares[other] < COLUMN) below.push(others.pop());
  }
  const place = high * size + Math.floor((low * size) / COLUMN);
  const column = Math.floor(place / COLUMN);
  return tokens[place % COLUMN < shares[column] ? column : alias[column]];
}
