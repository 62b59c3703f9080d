static const @REAL@ weight[V][V];

/* The neural bigram, one layer without anything else: a one-hot symbol times a matrix is a row of that matrix. The row
   of the last symbol has the logits of the next one. */
static void forward(const int context[T], double logits[V]) {
  for (int v = 0; v < V; v++) logits[v] = weight[context[T - 1]][v];
}
