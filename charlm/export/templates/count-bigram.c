static const int64_t counts[V][V];

/* The counted bigram: how often each symbol has followed the last one of the context, as a share of all that have.
   SMOOTHING is added to every count; a symbol that nothing has followed is followed by all alike. The logits are
   log-probabilities, of which softmax makes the probabilities again. */
static void forward(const int context[T], double logits[V]) {
  const int64_t* row = counts[context[T - 1]];
  double total = 0.0;
  for (int v = 0; v < V; v++) total += (double)row[v] + SMOOTHING;
  for (int v = 0; v < V; v++) logits[v] = log(total > 0.0 ? ((double)row[v] + SMOOTHING) / total : 1.0 / V);
}
