/* A character-level language model with its weights, and a program that draws new texts from it: one file of C99.

       cc -O2 model.c -lm -o model
       ./model 20 --seed 1 --temperature 0.8 --prefix mar
       ./model --help

   @SUMMARY@
   forward() is the model. The symbols and the weights are at the end of the file. Written by charlm @VERSION@. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

@SIZES@
/* The symbol before the first and after the last one of every text. */
enum { BOUNDARY = @BOUNDARY@ };

/* Characters in UTF-8, or bytes. A symbol may be the byte 0, so its size is stated. */
struct Symbol {
  const char* text;
  size_t size;
};
static const struct Symbol symbols[V];

@FORWARD@

struct Options {
  double temperature;
  int top_k;
};

struct Ranked {
  double value;
  int token;
};

static int higher_first(const void* left, const void* right) {
  const struct Ranked *a = left, *b = right;
  if (a->value != b->value) return a->value > b->value ? -1 : 1;
  return a->token - b->token;
}

static void rank(const double values[V], struct Ranked ranked[V]) {
  for (int v = 0; v < V; v++) ranked[v] = (struct Ranked){values[v], v};
  qsort(ranked, V, sizeof *ranked, higher_first);
}

static void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(2);
}

static double largest(const double values[V]) {
  double highest = values[0];
  for (int v = 1; v < V; v++) highest = values[v] > highest ? values[v] : highest;
  if (!isfinite(highest)) fail("the model's logits are not finite");
  return highest;
}

/* The probabilities of the next symbol: softmax(logits / temperature) over the top_k largest logits, the first ones of
   equals, and 0 for the others. Temperature 0 is its limit, all for the largest. */
static void probabilities(const int context[T], struct Options options, double p[V]) {
  static double logits[V];
  forward(context, logits);
  /* exp of a large number overflows, so the largest logit is taken from all: a factor that cancels in the quotient. */
  const double highest = largest(logits);
  double sum = 0.0;
  for (int v = 0; v < V; v++) p[v] = options.temperature > 0.0 ? exp((logits[v] - highest) / options.temperature) : 0.0;
  if (options.temperature == 0.0 || options.top_k < V) {
    static struct Ranked ranked[V];
    rank(logits, ranked);
    if (options.temperature == 0.0) p[ranked[0].token] = 1.0;
    for (int i = options.top_k; i < V; i++) p[ranked[i].token] = 0.0;
  }
  for (int v = 0; v < V; v++) sum += p[v];
  if (isnan(sum)) fail("the model's logits are not finite");
  for (int v = 0; v < V; v++) p[v] /= sum;
}

/* The 64 random bits that draw symbol number `position` of text number `text`. They depend on these and the seed alone,
   so a text does not change with the number of texts drawn. Philox4x32-10: Salmon, Moraes, Dror, Shaw 2011, "Parallel
   Random Numbers: As Easy as 1, 2, 3". One block of 128 bits serves two symbols. */
static uint64_t random_bits(uint64_t seed, uint64_t text, uint64_t position) {
  const uint64_t block = position / 2;
  uint32_t words[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)text, (uint32_t)(text >> 32)};
  uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = UINT64_C(0xD2511F53) * words[0], product1 = UINT64_C(0xCD9E8D57) * words[2];
    words[0] = (uint32_t)(product1 >> 32) ^ words[1] ^ key0;
    words[1] = (uint32_t)product1;
    words[2] = (uint32_t)(product0 >> 32) ^ words[3] ^ key1;
    words[3] = (uint32_t)product0;
    key0 += UINT32_C(0x9E3779B9);
    key1 += UINT32_C(0xBB67AE85);
  }
  const uint32_t* half = words + position % 2 * 2;
  return (uint64_t)half[0] << 32 | half[1];
}

/* Draws a symbol by an alias table (Walker 1977; Vose 1991). Every symbol that is possible has a column, all columns
   are as likely, and in each the symbol itself has its share and one other symbol the rest. Shares are integers, in
   2^-32 of a column, so that nothing depends on how sums round. It is as `charlm sample` draws, step for step. */
static int draw(const double p[V], uint64_t bits) {
  static int token[V], alias[V], below[V], others[V];
  static uint64_t share[V];
  const uint64_t column = UINT64_C(1) << 32;
  int size = 0, below_size = 0, others_size = 0, most = 0;
  for (int v = 0; v < V; v++) {
    if (p[v] > 0.0) token[size++] = v;
  }
  const uint64_t total = (uint64_t)size * column;
  double sum = 0.0;
  for (int v = 0; v < V; v++) sum += p[v];
  uint64_t given = 0;
  for (int c = 0; c < size; c++) {
    share[c] = (uint64_t)(p[token[c]] / sum * (double)total);
    given += share[c];
    if (share[c] > share[most]) most = c;
  }
  share[most] += total - given; /* what rounding down has left, modulo 2^64 */

  for (int c = 0; c < size; c++) {
    alias[c] = c;
    if (share[c] < column) {
      below[below_size++] = c;
    } else {
      others[others_size++] = c;
    }
  }
  while (below_size > 0) {
    const int c = below[--below_size], other = others[others_size - 1];
    alias[c] = other; /* the other fills this column up, and has as much less of its own */
    share[other] -= column - share[c];
    if (share[other] < column) {
      others_size--;
      below[below_size++] = other;
    }
  }

  /* The bits are a fraction; times the number of columns, its whole part is the column, and the rest is where in it. */
  const uint64_t columns = (uint64_t)size;
  const uint64_t place = (bits >> 32) * columns + ((bits & UINT32_MAX) * columns >> 32);
  const int c = (int)(place >> 32);
  return token[(place & UINT32_MAX) < share[c] ? c : alias[c]];
}

/* Every text begins after T boundaries. */
static void begin(int context[T]) {
  for (int t = 0; t < T; t++) context[t] = BOUNDARY;
}

static void append(int context[T], int token) {
  for (int t = 1; t < T; t++) context[t - 1] = context[t];
  context[T - 1] = token;
}

/* Reads the symbol at *text, and moves on to the next one. */
static int read_token(const char** text) {
  for (int v = 0; v < V; v++) {
    if (strncmp(*text, symbols[v].text, symbols[v].size) == 0) {
      *text += symbols[v].size;
      return v;
    }
  }
@UNKNOWN@
}

static void write_token(int token) { fwrite(symbols[token].text, 1, symbols[token].size, stdout); }

/* A symbol in a table: spaces, control characters and bytes that are no character as escapes, which can be seen. */
static void show_token(int token) {
  for (size_t i = 0; i < symbols[token].size; i++) {
    const unsigned char byte = (unsigned char)symbols[token].text[i];
    const bool is_part = symbols[token].size == 1 && byte >= 0x80;
    if (byte <= ' ' || byte == '\\' || byte == 0x7F || is_part) {
      printf("\\x%02x", byte);
    } else {
      putchar(byte);
    }
  }
}

/* --next: what may follow a text, and how probable it is, the most probable first. */
static void print_next(const char* text, struct Options options) {
  static double p[V];
  static struct Ranked ranked[V];
  int context[T];
  begin(context);
  while (*text != '\0') append(context, read_token(&text));
  probabilities(context, options, p);
  rank(p, ranked);
  for (int i = 0; i < V && ranked[i].value > 0.0; i++) {
    show_token(ranked[i].token);
    printf("\t%.9g\n", ranked[i].value);
  }
}

/* --score: the natural logarithm of the probability of each symbol of a text, its end included, and of all. */
static void print_score(const char* text) {
  static double logits[V];
  int context[T];
  double total = 0.0;
  bool ended = false;
  begin(context);
  while (!ended) {
    ended = *text == '\0';
    const int token = ended ? BOUNDARY : read_token(&text);
    forward(context, logits);
    const double highest = largest(logits);
    double sum = 0.0;
    for (int v = 0; v < V; v++) sum += exp(logits[v] - highest);
    const double log_probability = logits[token] - highest - log(sum);
    total += log_probability;
    show_token(token);
    printf("\t%.9g\n", log_probability);
    append(context, token);
  }
  printf("total\t%.9g\n", total);
}

static uint64_t integer(const char* name, const char* text, uint64_t low, uint64_t high) {
  char* end;
  errno = 0;
  const uint64_t value = strtoull(text, &end, 10);
  /* strtoull also takes spaces and signs. */
  if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || value < low || value > high) {
    fail("%s must be an integer from %llu to %llu, got \"%s\"", name, (unsigned long long)low, (unsigned long long)high,
         text);
  }
  return value;
}

static uint64_t seed_of(const char* text) {
  const uint64_t lowest = UINT64_C(1) << 63;
  if (*text == '-') return 0 - integer("--seed without its sign", text + 1, 0, lowest);
  return integer("--seed", text, 0, UINT64_MAX);
}

static double temperature_of(const char* text) {
  char* end;
  const double value = strtod(text, &end);
  if (end == text || *end != '\0' || !isfinite(value) || value < 0.0) {
    fail("--temperature must be a finite number >= 0, got \"%s\"", text);
  }
  return value;
}

static const char help[] =
    "Draws N new texts, one a line; 10 without N.\n"
    "\n"
    "  --seed S         the same seed, the same texts (default: from the clock)\n"
    "  --temperature X  below 1 plays safe, above 1 dares; 0 is the most probable (default: 1)\n"
    "  --top-k K        draw from the K most probable symbols only\n"
    "  --prefix TEXT    how every text starts\n"
    "  --max-length L   where a text that does not end is cut (default: 1000)\n"
    "  --no-stop        go on to --max-length, across the ends of texts\n"
    "  --next TEXT      print what may follow TEXT, and how probable it is\n"
    "  --score TEXT     print the log-probability of TEXT, symbol by symbol\n";

int main(int argc, char** argv) {
  uint64_t n = 10, max_length = 1000, seed = (uint64_t)time(NULL) * UINT64_C(0x9E3779B97F4A7C15) ^ (uint64_t)clock();
  struct Options options = {1.0, V};
  const char *prefix = "", *next = NULL, *score = NULL;
  bool stop = true;
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i], *value = argv[i + 1]; /* argv ends with NULL */
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
      fputs(help, stdout);
      return 0;
    }
    if (strcmp(name, "--no-stop") == 0) {
      stop = false;
      continue;
    }
    if (name[0] != '-') {
      n = integer("N", name, 0, INT64_MAX);
      continue;
    }
    if (value == NULL) {
      fail("%s is no option, or needs a value: see --help", name);
      return 2;
    }
    i++;
    if (strcmp(name, "--seed") == 0) {
      seed = seed_of(value);
    } else if (strcmp(name, "--temperature") == 0) {
      options.temperature = temperature_of(value);
    } else if (strcmp(name, "--top-k") == 0) {
      const uint64_t top_k = integer(name, value, 1, INT64_MAX);
      options.top_k = top_k < V ? (int)top_k : V;
    } else if (strcmp(name, "--prefix") == 0) {
      prefix = value;
    } else if (strcmp(name, "--max-length") == 0) {
      max_length = integer(name, value, 1, INT32_MAX);
    } else if (strcmp(name, "--next") == 0) {
      next = value;
    } else if (strcmp(name, "--score") == 0) {
      score = value;
    } else {
      fail("%s is no option: see --help", name);
    }
  }
  if (next != NULL) print_next(next, options);
  if (score != NULL) print_score(score);
  if (next != NULL || score != NULL) return fflush(stdout) == 0 ? 0 : 1;

  int start[T];
  uint64_t prefix_length = 0;
  begin(start);
  for (const char* rest = prefix; *rest != '\0'; prefix_length++) {
    const int token = read_token(&rest);
    if (stop && token == BOUNDARY) fail("--prefix has the boundary in it, where a text ends");
    append(start, token);
  }
  if (prefix_length > max_length) fail("--max-length must be at least the length of --prefix");

  static double p[V];
  for (uint64_t text = 0; text < n && !ferror(stdout); text++) {
    int context[T];
    memcpy(context, start, sizeof context);
    fputs(prefix, stdout);
    for (uint64_t position = 0; position < max_length - prefix_length; position++) {
      probabilities(context, options, p);
      const int token = draw(p, random_bits(seed, text, position));
      if (stop && token == BOUNDARY) break;
      write_token(token);
      append(context, token);
    }
    putchar('\n');
  }
  return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}

/* In octal where it is not plain ASCII. */
static const struct Symbol symbols[V] = {
@SYMBOLS@
};

@WEIGHTS@
