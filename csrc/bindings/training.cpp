#include "bindings/training.h"

#include <cmath>

#include "bindings/branches.h"

namespace charlm {
namespace {

constexpr const char* kNames[] = {"embedding", "weight1", "bias1", "weight2", "bias2", "direct_weight"};

// Updated in place: its memory must be exactly the tensor.
void check_updatable(const char* name, const Tensor& tensor, const char* first_name, const Tensor& first) {
  check_matches(name, tensor, first_name, first);
  check(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double, name,
        " must have dtype float32 or float64, got ", DtypeString(tensor));
  check(tensor.is_contiguous(), name, " must be contiguous, since it is updated in place");
}

ModelShape bigram_shape(const Tensor& weight, int64_t context_length) {
  check_updatable("weight", weight, "weight", weight);
  check(weight.dim() == 2 && weight.size(0) == weight.size(1) && weight.numel() > 0,
        "weight must have shape (V, V), got ", ShapeString(weight));
  check_sizes({{"V", weight.size(0)}, {"V", weight.size(0)}});
  check(context_length == 1, "contexts must have shape (N, 1) for a bigram, got T=", context_length);
  return {weight.size(0), 1, 0, 0, false};
}

ModelShape mlp_shape(Tensors parameters, int64_t context_length) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    check_updatable(kNames[i], parameters[i], "embedding", parameters[0]);
  }
  check(parameters[0].dim() == 2 && parameters[0].numel() > 0, "embedding must have shape (V, D), got ",
        ShapeString(parameters[0]));
  check(parameters[2].dim() == 1 && parameters[2].numel() > 0, "bias1 must have shape (H,), got ",
        ShapeString(parameters[2]));
  const ModelShape shape{parameters[0].size(0), context_length, parameters[0].size(1), parameters[2].size(0),
                         parameters.size() == 6};
  const NamedSize vocab{"V", shape.vocab_size}, length{"T", context_length};
  check_sizes({vocab, length, vocab});
  check_sizes({vocab, length, {"D", shape.embedding_dim}});
  check_sizes({vocab, length, {"H", shape.hidden_dim}});
  check_sizes({length, {"D", shape.embedding_dim}, {"H", shape.hidden_dim}});
  const int64_t inputs = context_length * shape.embedding_dim;
  const auto expect = [&](size_t i, std::initializer_list<int64_t> sizes, const char* meaning) {
    check_shape(kNames[i], parameters[i], sizes, meaning);
  };
  expect(1, {shape.hidden_dim, inputs}, "(H, T*D) = ");
  expect(3, {shape.vocab_size, shape.hidden_dim}, "(V, H) = ");
  expect(4, {shape.vocab_size}, "(V,) = ");
  if (shape.direct) expect(5, {shape.vocab_size, inputs}, "(V, T*D) = ");
  return shape;
}

}  // namespace

void check_table_rows(const ModelShape& shape, int64_t contexts) {
  check(shape.table_rows(contexts) < (int64_t{1} << 31),
        "contexts must have fewer than 2^31 tokens at positions that differ, got up to ", shape.table_rows(contexts));
}

TrainingOptions checked_options(const TrainingOptions& options) {
  const auto check_non_negative = [](const char* name, double value) {
    check(value >= 0 && std::isfinite(value), name, " must be non-negative and finite, got ", value);
  };
  const auto check_fraction = [](const char* name, double value) {
    check(value >= 0 && value < 1, name, " must be in [0, 1), got ", value);
  };
  check(options.kind == OptimizerKind::kSgd || options.kind == OptimizerKind::kAdamw,
        "optimizer must be 0 (sgd) or 1 (adamw), got ", static_cast<int64_t>(options.kind));
  check_fraction("momentum", options.momentum);
  check_fraction("beta1", options.beta1);
  check_fraction("beta2", options.beta2);
  check_non_negative("eps", options.eps);
  check_non_negative("weight_decay", options.weight_decay);
  check_non_negative("max_grad_norm", options.max_grad_norm);
  check_non_negative("softcap", options.softcap);
  check(options.first_step >= 0, "first_step must be at least 0, got ", options.first_step);
  return options;
}

const char* parameter_name(const ModelShape& shape, size_t parameter) {
  return shape.is_bigram() ? "weight" : kNames[parameter];
}

ModelShape check_parameters(Tensors parameters, Tensors state, const TrainingOptions& options, int64_t context_length) {
  check(parameters.size() == 1 || parameters.size() == 5 || parameters.size() == 6,
        "parameters must be weight; or embedding, weight1, bias1, weight2, bias2 and perhaps direct_weight; got ",
        parameters.size(), " tensors");
  const ModelShape shape =
      parameters.size() == 1 ? bigram_shape(parameters[0], context_length) : mlp_shape(parameters, context_length);
  check(!shape.is_bigram() || options.softcap == 0, "softcap is not an option of a bigram, got ", options.softcap);
  const int64_t expected = options.states() * static_cast<int64_t>(parameters.size());
  check(static_cast<int64_t>(state.size()) == expected, "optimizer_state must have ", expected, " tensors, got ",
        state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    const std::string name = concatenate("optimizer_state[", i, "]");
    check_updatable(name.c_str(), state[i], "the parameters", parameters[0]);
    check_shape(name.c_str(), state[i], parameters[i % parameters.size()].sizes(), "of its parameter = ");
  }
  return shape;
}

void check_contexts(const Tensor& contexts) {
  check(contexts.dim() == 2 && contexts.size(1) > 0, "contexts must have shape (N, T), got ", ShapeString(contexts));
}

template <typename T>
Update<T> update_as(const TrainingOptions& options) {
  Update<T> update;
  update.kind = options.kind;
  update.weight_decay = option_as<T>("weight_decay", options.weight_decay);
  update.momentum = fraction_as<T>("momentum", options.momentum);
  update.beta1 = fraction_as<T>("beta1", options.beta1);
  update.beta2 = fraction_as<T>("beta2", options.beta2);
  update.eps = option_as<T>("eps", options.eps);
  update.max_grad_norm = option_as<T>("max_grad_norm", options.max_grad_norm);
  return update;
}

template <typename T>
std::vector<Rates<T>> rates_as(const TrainingOptions& options, const Tensor& learning_rates, int64_t model) {
  const bool has_row = learning_rates.dim() == 2;
  const int64_t steps = learning_rates.size(learning_rates.dim() - 1);
  const double* values = learning_rates.const_data_ptr<double>() + (has_row ? model * steps : 0);
  std::vector<Rates<T>> result(steps);
  // SGD has no moments to correct, and powers take longer than all else here.
  const bool has_moments = options.kind == OptimizerKind::kAdamw;
  for (int64_t s = 0; s < steps; ++s) {
    const double step = static_cast<double>(options.first_step) + static_cast<double>(s + 1);
    const auto correction = [&](double beta) { return has_moments ? 1 - std::pow(beta, step) : 1; };
    const double rate = values[s], step_size = rate / correction(options.beta1);
    if (!fits<T>(rate) || !fits<T>(step_size)) [[unlikely]] {
      const std::string row = has_row ? concatenate(model, ", ") : "";
      option_as<T>(concatenate("learning_rates[", row, s, "]").c_str(), fits<T>(rate) ? step_size : rate);
    }
    result[s] = {static_cast<T>(rate), static_cast<T>(step_size),
                 static_cast<T>(1 / std::sqrt(correction(options.beta2)))};
  }
  return result;
}

template <typename T>
void took_branch_of(const cpu::MlpModel<T>& model) {
  static constexpr const char* kTilings[] = {"one_tile", "tiles", "slots", "class_slots", "tiles_of_class_slots"};
  static constexpr const char* kUpdates[] = {"loss",           "gradient", "in_place",      "at_once",
                                             "at_once_sparse", "clipped",  "clipped_sparse"};
  constexpr size_t kCount = std::size(kUpdates);
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const char* cut : kTilings) {
      for (const char* update : kUpdates) result.push_back(concatenate("mlp_step/", cut, '/', update));
    }
    return result;
  }();
  const MlpStep<T>& step = model.last_step();
  const MlpTiling tiling(step.layout, step.batch.rows);
  const bool many_tiles = tiling.tiles > 1, is_sparse = step.update != nullptr && step.update->is_sparse();
  const size_t cut = tiling.class_slots > 1 ? 3 + many_tiles : tiling.slots > 1 ? 2 : many_tiles;
  const UpdateTime time = tiling.update_time(step.update);
  size_t update = step.gradient != nullptr;
  if (time == UpdateTime::kInPlace) update = 2;
  if (time == UpdateTime::kAtOnce) update = 3 + is_sparse;
  if (time == UpdateTime::kAfterClipping) update = 5 + is_sparse;
  took_branch(names[cut * kCount + update].c_str());
}

template <typename T>
void took_branch_of(const cpu::BigramModel<T>& model) {
  switch (bigram_update_time(model.last_step().update)) {
    case UpdateTime::kNever:
      return took_branch("bigram_step/loss");
    case UpdateTime::kInPlace:
      return took_branch("bigram_step/in_place");
    case UpdateTime::kAtOnce:
      return took_branch("bigram_step/at_once");
    default:
      return took_branch("bigram_step/clipped");
  }
}

#define CHARLM_TRAINING(T)                                                                 \
  template Update<T> update_as(const TrainingOptions&);                                    \
  template std::vector<Rates<T>> rates_as(const TrainingOptions&, const Tensor&, int64_t); \
  template void took_branch_of(const cpu::MlpModel<T>&);                                   \
  template void took_branch_of(const cpu::BigramModel<T>&);
CHARLM_TRAINING(float)
CHARLM_TRAINING(double)
#undef CHARLM_TRAINING

}  // namespace charlm
