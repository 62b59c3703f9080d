static const @REAL@ embedding[V][D], weight1[H][T * D], bias1[H], weight2[V][H], bias2[V];
//if direct
static const @REAL@ direct_weight[V][T * D];
//end

/* The multi-layer perceptron of Bengio, Ducharme, Vincent, Jauvin 2003, "A Neural Probabilistic Language Model":

       x      = the embeddings of the T symbols of the context, one after the other    (T*D,)
       h      = tanh(weight1 x + bias1)                                                (H,)
//if direct
       z      = weight2 h + bias2 + direct_weight x                                    (V,)
//end
//if not direct
       z      = weight2 h + bias2                                                      (V,)
//end
//if softcap
       logits = SOFTCAP tanh(z / SOFTCAP)                                              (V,)
//end
//if not softcap
       logits = z                                                                      (V,)
//end

   The weights are those that were trained, to the last bit; sums are in double. */
static void forward(const int context[T], double logits[V]) {
  static double x[T * D], h[H];
  for (int t = 0; t < T; t++) {
    for (int d = 0; d < D; d++) x[t * D + d] = embedding[context[t]][d];
  }
  for (int j = 0; j < H; j++) {
    double sum = bias1[j];
    for (int i = 0; i < T * D; i++) sum += weight1[j][i] * x[i];
    h[j] = tanh(sum);
  }
  for (int v = 0; v < V; v++) {
    double sum = bias2[v];
    for (int j = 0; j < H; j++) sum += weight2[v][j] * h[j];
//if direct
    for (int i = 0; i < T * D; i++) sum += direct_weight[v][i] * x[i];
//end
//if softcap
    logits[v] = SOFTCAP * tanh(sum / SOFTCAP);
//end
//if not softcap
    logits[v] = sum;
//end
  }
}
