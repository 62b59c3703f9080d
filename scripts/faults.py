"""The faults that scripts/planted_faults.py plants: mistakes as they are made, each of which a test is to find.

A fault belongs to the list where it says something of the tests that the others do not. Its text must be found exactly
once in its file; tests/test_faults.py holds that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A mistake in one place.

    Attributes:
        name: of the mistake.
        file: where it is.
        right: the text there, found exactly once in the file.
        wrong: what stands there instead.
        tests: those that are to find it, as pytest takes them.
        is_compiled: whether the extension has to be compiled anew. Tests compile some sources themselves.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]

    @property
    def is_simulated(self) -> bool:
        """Whether it is in what only a GPU runs, or what stands in for one."""
        return "/cuda/" in self.file

    @property
    def is_compiled(self) -> bool:
        return self.file.startswith("csrc/") and not self.is_simulated and self.tests != (CPU_MATH,)

    def planted_in(self, text: str) -> str:
        """The text of the file with the fault."""
        if text.count(self.right) != 1:
            raise ValueError(f"{self.file} must have this once, for the fault {self.name!r}: {self.right}")
        return text.replace(self.right, self.wrong)


CPU_MATH = "tests/test_cpu_math.py"
DIRECT = "tests/test_direct_calls.py::test_"
CE = "tests/test_cross_entropy.py::test_"
WEIGHTS = "tests/test_token_weights.py::test_"
EL = "tests/test_embedding_linear.py::test_"
LP = "tests/test_log_probs.py::test_"
LLP = "tests/test_linear_log_probs.py::test_"
MLP = "tests/test_mlp_cross_entropy.py::test_"
DEVICE = "tests/test_cuda_device.py::test_"
CONTRACT = "tests/test_op_contract.py::test_"
ENGINE = "tests/test_engine.py::test_"
BRANCHES = "tests/test_engine_branches.py::test_"
ENGINE_POPULATION = "tests/test_engine_population.py::test_"
TRAINING = "tests/test_training.py::test_"
SWEEP = "tests/test_sweep.py::test_"
POPULATION = "tests/test_population.py::test_"
GRAPHED = "tests/test_graphed.py::test_"

KERNELS = [
    Fault(
        "models that are trained at the same time share their memory",
        "csrc/kernels/models.h",
        "memory.data() + slot * all + part * size",
        "memory.data() + part * size",
        (ENGINE_POPULATION + "every_model_has_the_bits_of_its_own_call",),
    ),
    Fault(
        "the models that come after the others are left out",
        "csrc/kernels/models.h",
        "for (int64_t model = together; model < models; ++model) train(model, int64_t{0});",
        "",
        (ENGINE_POPULATION + "any_number_of_models_on_any_number_of_threads",),
    ),
    Fault(
        "the tail of a row counts lanes that are not there",
        "csrc/kernels/cpu/cross_entropy_tile.h",
        "sum = sum + (lanes == kWidth<T> ? e : keep_lanes<T>(e, lanes));",
        "sum = sum + e;",
        (CE + "every_shape_in_every_dtype",),
    ),
    Fault(
        "the target's gradient lacks the slope of the softcap",
        "csrc/kernels/cpu/cross_entropy_tile.h",
        "from_compute(g * target_slope, out + y);",
        "from_compute(g, out + y);",
        (CE + "every_combination_of_options",),
    ),
    Fault(
        "ignored rows have a z-loss",
        "csrc/kernels/cpu/cross_entropy_narrow.h",
        "counted[r] = counts;",
        "counted[r] = 1;",
        (CE + "every_combination_of_options",),
    ),
    Fault(
        "the weight of a row is not in its gradient",
        "csrc/kernels/cpu/cross_entropy_tile.h",
        "return scale * token_weight(p, n);",
        "return scale;",
        (WEIGHTS + "they_are_factors_of_the_losses_of_torch",),
    ),
    Fault(
        "only negative targets are ignored",
        "csrc/kernels/cpu/cross_entropy_narrow.h",
        "const bool counts = y != p.ignore_index;",
        "const bool counts = y >= 0;",
        (CE + "any_ignore_index",),
    ),
    Fault(
        "the pieces of a long row are added in float",
        "csrc/kernels/cpu/cross_entropy_tile.h",
        "  double total = 0;\n  for (int64_t c = 0; c < classes; c += kPiece)",
        "  T total = 0;\n  for (int64_t c = 0; c < classes; c += kPiece)",
        ("tests/test_loss_edges.py::test_long_rows_lose_no_digits",),
    ),
    Fault(
        "all rows of a strided matrix are the first one",
        "csrc/kernels/cpu/class_rows.h",
        "matrix.inner == 1 ? matrix.outer_stride : matrix.inner_stride,",
        "matrix.inner_stride,",
        (CE + "any_strides",),
    ),
    Fault(
        "bfloat16 is cut off and not rounded",
        "csrc/kernels/storage.h",
        "const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;",
        "const uint32_t rounded = bits >> 16;",
        (EL + "half_precision_is_rounded_to_the_nearest",),
    ),
    Fault(
        "a vector of bfloat16 is cut off and not rounded",
        "csrc/kernels/cpu/convert.h",
        "rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;\n  return",
        "rounded = bits >> 16;\n  return",
        (CE + "a_gradient_in_half_precision_is_rounded_to_the_nearest",),
    ),
    Fault(
        "the second value of a pair is not multiplied",
        "csrc/kernels/cpu/pairs.h",
        "return sum + bits_to_float(a.bits << 16) * (Vec<float>)(pairs << 16);",
        "return sum;",
        ("tests/test_cpu_product.py::test_half_precision_is_summed_in_float32",),
    ),
    Fault(
        "what fills up the last tile of a panel is not 0",
        "csrc/kernels/cpu/gemm.h",
        "filled < steps; first += kTileColumns",
        "filled > steps; first += kTileColumns",
        ("tests/test_cpu_product.py::test_half_precision_is_summed_in_float32",),
    ),
    Fault(
        "a tile at the edge of the result does not add to it",
        "csrc/kernels/cpu/tiles.h",
        "tiles(steps, a, from, width, edge, kColumns, accumulate);",
        "tiles(steps, a, from, width, edge, kColumns, false);",
        ("tests/test_cpu_product.py::test_half_precision_is_summed_in_float32",),
    ),
    Fault(
        "a product forgets all steps but those of the last block",
        "csrc/kernels/cpu/product.cpp",
        "accumulate || k > 0",
        "accumulate",
        ("tests/test_cpu_product.py::test_any_strides",),
    ),
    Fault(
        "later partial sums take the place of earlier ones",
        "csrc/kernels/cpu/embedding_linear.cpp",
        "store(to, is_first ? load(from) : load(to) + load(from));",
        "store(to, load(from));",
        (CONTRACT + "every_dtype_at_a_size_of_many_tiles",),
    ),
    Fault(
        "a product adds to the first vector of a panel only",
        "csrc/kernels/cpu/gemm.h",
        "if (accumulate) sum[i][j] += load_lanes<T>(out, lanes, 0);",
        "if (accumulate && j == 0) sum[i][j] += load_lanes<T>(out, lanes, 0);",
        (EL + "a_large_vocabulary_and_many_rows",),
    ),
    Fault(
        "a coefficient of the logarithm lacks its last digits",
        "csrc/kernels/cpu/math.h",
        "p = p * m - 2.4999993993e-1f;",
        "p = p * m - 2.4999e-1f;",
        (CPU_MATH,),
    ),
    Fault(
        "AdamW has no weight decay",
        "csrc/kernels/cpu/optimizer.h",
        "load(parameters + i) * keep - u.rates.step_size",
        "load(parameters + i) - u.rates.step_size",
        (ENGINE + "options_equal_eager",),
    ),
    Fault(
        "a direct call reads targets that are no classes",
        "csrc/bindings/direct_loss.cpp",
        "return cpu::first_bad_class(problem.target, problem.rows, problem.classes, problem.ignore_index) < 0;",
        "return true;",
        (DIRECT + "what_is_wrong_is_for_the_op_to_say",),
    ),
    Fault(
        "a direct call scales the gradient of an ignored row",
        "csrc/bindings/direct_scaling.cpp",
        "if (indices.data()[n] == ignore_index) factors[n] = 0;",
        "(void)ignore_index;",
        (DIRECT + "rows_are_scaled_if_they_count",),
    ),
    Fault(
        "backward takes a row that forward has shifted for one that it has not",
        "csrc/kernels/cpu/cross_entropy_narrow.h",
        "shifted |= load(p.shift + first + r) != 0;",
        "shifted |= load(p.shift + first + r) != load(p.shift + first + r);",
        ("tests/test_direct_losses.py::test_backward_on_another_instruction_set",),
    ),
    Fault(
        "a direct call takes a storage for as long as it was",
        "csrc/bindings/plain_tensor.cpp",
        "call_for_integer(storage.get(), torch.nbytes);",
        "INT64_MAX;",
        (DIRECT + "it_is_for_plain_tensors_alone",),
    ),
    Fault(
        "the output bias is not clipped",
        "csrc/kernels/cpu/mlp_step.cpp",
        "update(bias2, layout_.size(), scale);",
        "update(bias2, layout_.size(), 1);",
        (ENGINE + "options_equal_eager",),
    ),
    Fault(
        "very negative logits are not shifted",
        "csrc/kernels/cpu/softmax_rows.h",
        "beyond |= ~((logits < (T)kUnshifted) & (logits > -(T)kUnshifted));",
        "beyond |= ~(logits < (T)kUnshifted);",
        (BRANCHES + "small_logits_are_not_shifted_and_large_ones_are", ENGINE + "large_logits_stay_finite"),
    ),
    Fault(
        "two groups of classes write one gradient of the hidden layer",  # a race
        "csrc/kernels/cpu/mlp_memory.h",
        "tiling.tile_rows * (class_slot * layout.hidden.padded() + layout.hidden.begin(block));",
        "tiling.tile_rows * layout.hidden.begin(block);",
        (BRANCHES + "every_branch_of_a_step_equals_eager",),
    ),
    Fault(
        "the last tile of a batch is left out",
        "csrc/kernels/mlp_step.cpp",
        "tiles = (rows + tile_rows - 1) / tile_rows;",
        "tiles = rows / tile_rows;",
        (ENGINE + "steps_equal_eager",),
    ),
    Fault(
        "a token takes the table row of another position",
        "csrc/kernels/batch.cpp",
        "if (known < begin || known >= table_row || tokens_[known] != token) {",
        "if (known >= table_row || tokens_[known] != token) {",
        (ENGINE + "steps_equal_eager",),
    ),
    Fault(
        "positions of ids lie side by side whatever the stride",
        "csrc/kernels/token_index.cpp",
        "const auto id = row[t * ids.position_stride];",
        "const auto id = row[t];",
        (EL + "ids_with_any_strides",),
    ),
    Fault(
        "classes as probable as the id are above it",
        "csrc/kernels/cpu/log_probs.cpp",
        "not_above += x <= sums->first_input;",
        "not_above += x < sums->first_input;",
        (LP + "ties_are_the_first_class_and_no_higher_rank",),
    ),
    Fault(
        "the sum of p log p is not brought under the new largest logit",
        "csrc/kernels/cpu/log_probs.cpp",
        "factor * (sums->product + change * sums->sum)",
        "factor * sums->product",
        (LP + "any_number_of_ids",),
    ),
    Fault(
        "the gradient of the entropy lacks the entropy",
        "csrc/kernels/cpu/log_probs.cpp",
        "of_entropy * (p.log_sum[n] - p.kept_entropy[n])",
        "of_entropy * p.log_sum[n]",
        (LP + "gradients_of_some_results",),
    ),
    Fault(
        "ignored ids have a part in the gradient of their row",
        "csrc/kernels/cpu/log_probs.cpp",
        "p.log_probs_gradient == nullptr || ids[k] == p.ignore_index ? 0",
        "p.log_probs_gradient == nullptr ? 0",
        (LP + "what_is_ignored_has_gradient_zero_whatever_comes_from_upstream",),
    ),
    Fault(
        "every chunk of rows sets the gradient of the weight",
        "csrc/kernels/linear_log_probs.cpp",
        "first_row == 0 ? Write::kSet : Write::kAdd",
        "Write::kSet",
        (LLP + "gradients_of_some_results",),
    ),
    Fault(
        "a backward that may run again turns kept logits into a gradient",
        "charlm/ops/linear_log_probs.py",
        "logits.clone() if graph_is_kept() else logits.detach()",
        "logits.detach()",
        (LLP + "kept_logits_outlast_a_backward_of_a_graph_that_is_kept",),
    ),
    Fault(
        "ranks in blocks are of a logit of 0",
        "csrc/kernels/linear_log_probs.cpp",
        "sums.data()[n].first_input = first_inputs.data()[n];",
        "sums.data()[n].first_input = 0;",
        (LLP + "the_most_probable_class_has_rank_zero",),
    ),
]

BINDINGS = [
    Fault(
        "every model has the rates of the first",
        "csrc/bindings/training.cpp",
        "(has_row ? model * steps : 0)",
        "(has_row ? 0 : 0)",
        (ENGINE_POPULATION + "every_model_has_the_bits_of_its_own_call",),
    ),
    Fault(
        "two models may be one piece of memory",
        "csrc/bindings/population.h",
        "  check_disjoint(population);\n",
        "",
        (
            ENGINE_POPULATION + "bad_arguments_change_no_model",
            ENGINE_POPULATION + "memory_in_common_is_found_wherever_it_is",
        ),
    ),
    Fault(
        "a model of another dtype is taken for one of the first's",
        "csrc/bindings/population.cpp",
        '        check_matches(parameter_name(shape, p), parameters[p], "model 0", first[0]);\n',
        "",
        (ENGINE_POPULATION + "bad_arguments_change_no_model",),
    ),
    Fault(
        "a mean counts rows in the place of class weights",
        "csrc/kernels/cross_entropy.cpp",
        "problem.weight == nullptr ? 1 : problem.weight[problem.target[n]];",
        "true ? 1 : problem.weight[problem.target[n]];",
        (CE + "every_combination_of_options",),
    ),
    Fault(
        "threads share one scratch",  # a race
        "csrc/kernels/cross_entropy.cpp",
        "  parallel_for(tiles, grain, [&](int64_t first, int64_t last) {\n"
        "    const Workspace<T> scratch(cross_entropy_scratch(problem));\n",
        "  const Workspace<T> scratch(cross_entropy_scratch(problem));\n"
        "  parallel_for(tiles, grain, [&](int64_t first, int64_t last) {\n",
        (CE + "threads_have_memory_of_their_own",),
    ),
    Fault(
        "float16 is read as float32",
        "csrc/bindings/tensors.cpp",
        "    case ScalarType::Half:\n      return Storage::kFloat16;\n",
        "",
        (CE + "every_shape_in_every_dtype",),
    ),
    Fault(
        "errors of other threads are swallowed",
        "csrc/bindings/host_library.cpp",
        "  if (error) std::rethrow_exception(error);\n",
        "",
        ("tests/test_memory.py::test_memory_that_runs_out_in_a_thread",),
    ),
    Fault(
        "the dimensions of an ignored row are taken in the wrong order",
        "csrc/bindings/scale_gradients.cpp",
        "for (size_t d = sizes_.size(); d-- > 0;) {",
        "for (size_t d = 0; d < sizes_.size(); ++d) {",
        ("tests/test_uncounted_rows.py::test_rows_of_several_dimensions_and_any_class_ignored",),
    ),
    Fault(
        "AdamW counts its steps anew in each call",
        "csrc/bindings/training.cpp",
        "static_cast<double>(options.first_step) + static_cast<double>(s + 1)",
        "static_cast<double>(s + 1)",
        (ENGINE + "calls_continue_each_other_bit_for_bit",),
    ),
    Fault(
        "the sum of a whole model's losses is their mean",
        "csrc/kernels/mlp_cross_entropy.cpp",
        "  if (!problem.mean) batch.weight = 1;\n",
        "",
        (MLP + "every_option_and_reduction",),
    ),
    Fault(
        "training writes into memory that other tensors share until then",
        "csrc/bindings/training.h",
        "result.push_back(tensor.mutable_data_ptr<T>());",
        "result.push_back(const_cast<T*>(tensor.const_data_ptr<T>()));",
        (ENGINE + "what_shares_memory_until_it_is_written_to_keeps_its_values",),
    ),
]

TEXT = [
    Fault(
        "only ASCII counts as white space",
        "csrc/text/lines.h",
        "decode_utf8(last, end, character) == 0 || !is_space(character)",
        "decode_utf8(last, end, character) == 0 || character > 0x7F || !is_space(character)",
        ("tests/test_text.py::test_trailing_white_space_is_that_of_python",),
    ),
    Fault(
        "a carriage return at the end of what was read is forgotten",
        "csrc/text/text_reader.cpp",
        "if (!after_cr_ && std::memchr(",
        "if (std::memchr(",
        ("tests/test_text.py::test_a_text_cut_at_every_byte",),
    ),
    Fault(
        "contexts of tokens of two bytes are told apart by one",
        "csrc/text/contexts.cpp",
        "key = key << (8 * sizeof(Token)) | static_cast<Bits>(context[t]);",
        "key = key << 8 | static_cast<Bits>(context[t]);",
        ("tests/test_data.py::test_contexts_of_tokens_of_two_bytes_are_told_apart",),
    ),
    Fault(
        "a text may end before its least length",
        "csrc/text/chain.cpp",
        "now[n] = value(static_cast<uint32_t>(n), length >= min_length_, next);",
        "now[n] = value(static_cast<uint32_t>(n), true, next);",
        ("tests/test_constraints.py::test_the_probability_of_each_text_is_the_conditional_one",),
    ),
    Fault(
        "every attempt at a text is the same",
        "csrc/text/sampler.cpp",
        "uint64_t{text.attempt} << 33 | position",
        "position",
        ("tests/test_constraints.py::test_a_text_that_keeps_the_rules_stays_where_it_was",),
    ),
    Fault(
        "half of the seed is not used",
        "csrc/text/philox.h",
        "auto key1 = static_cast<uint32_t>(key >> 32);",
        "auto key1 = uint32_t{0};",
        ("tests/test_text_sampler.py::test_tokens_are_drawn_with_the_documented_numbers",),
    ),
]

PYTHON = [
    Fault(
        "what the splits of a file of tokens say is believed",
        "charlm/token_files.py",
        "            _check_ends(description, arrays)\n",
        "",
        ("tests/test_encode.py::test_a_header_is_believed_only_if_it_fits",),
    ),
    Fault(
        "a part of some lines begins where other lines are",
        "charlm/splits.py",
        "token = start + first * (self.context_length - 1)",
        "token = start + first * self.context_length",
        ("tests/test_data.py::test_lines",),
    ),
    Fault(
        "a text that others write to is read on",
        "charlm/sources.py",
        "if _state(self._file) != self._state:",
        "if self._file.closed:",
        ("tests/test_encodings.py::test_a_text_that_changes_while_it_is_read",),
    ),
    Fault(
        "a row that counts is one whose target is not negative",
        "charlm/ops/_scaling.py",
        "counts = target != ignore_index",
        "counts = target >= 0",
        ("tests/test_uncounted_rows.py::test_rows_of_several_dimensions_and_any_class_ignored",),
    ),
    Fault(
        "the mean of each sample is over the wrong axis",
        "charlm/ops/_transforms.py",
        "return totals / _sum_each(counted)",
        "return totals / losses.shape[0]",
        ("tests/test_transforms.py::test_vmap_over_one_argument",),
    ),
    Fault(
        "a module drops the z-loss",
        "charlm/nn.py",
        "            options=self.options,\n            softcap=self.softcap,\n            z_loss=self.z_loss,\n",
        "            options=self.options,\n            softcap=self.softcap,\n",
        ("tests/test_nn.py::test_linear_cross_entropy_loss_is_its_op_and_torchs",),
    ),
    Fault(
        "the seed of the split is not used",
        "charlm/arrangement.py",
        "torch.Generator().manual_seed(int(seed))",
        "torch.Generator().manual_seed(42)",
        ("tests/test_data.py::test_the_seed_decides_the_split",),
    ),
    Fault(
        "the first example of a line belongs to the one before",
        "charlm/splits.py",
        "indices.to(self.ends.dtype), right=True)",
        "indices.to(self.ends.dtype), right=False)",
        ("tests/test_data.py::test_lines",),
    ),
    Fault(
        "blocks of batches that were skipped are not drawn",
        "charlm/batches.py",
        "            self._draw(self._rows - self._drawn)\n",
        "",
        (TRAINING + "batches_are_the_plain_random_numbers_of_the_seed",),
    ),
    Fault(
        "batches that are read again are others",
        "charlm/batches.py",
        "            self._generator.set_state(self._state)\n            self._drawn = 0\n",
        "            self._drawn = offset\n",
        (TRAINING + "batches_are_the_plain_random_numbers_of_the_seed",),
    ),
    Fault(
        "models on two texts are trained on one of them",
        "charlm/backends/fused.py",
        "self._kind = (*kind, state_names(options), split)",
        "self._kind = (*kind, state_names(options))",
        ("tests/test_population_arguments.py::test_configurations_share_what_they_read",),
    ),
    Fault(
        "all models of a population have the softcap of none",
        "charlm/backends/fused.py",
        '{"softcaps": [backend._softcap for backend in backends], ',
        '{"softcaps": None, ',
        (POPULATION + "every_trainer_is_what_it_would_be_by_itself",),
    ),
    Fault(
        "a model that has diverged goes on",
        "charlm/population.py",
        "live = [number for number, error in enumerate(self.errors) if error is None]",
        "live = list(range(len(self.errors)))",
        (POPULATION + "a_model_that_diverges_stops_no_other",),
    ),
    Fault(
        "losses after a divergence depend on the chunks",
        "charlm/population.py",
        "chunks[-1][number, :made] = outcome[:made]",
        "chunks[-1][number] = outcome",
        (POPULATION + "what_follows_the_first_loss_that_is_not_finite_is_nan",),
    ),
    Fault(
        "a bad state of one trainer leaves those before it changed",
        "charlm/population.py",
        "                    earlier.load_state_dict(kept)\n",
        "                    pass\n",
        (POPULATION + "a_bad_state_changes_nothing",),
    ),
    Fault(
        "warm-up begins at a rate of 0",
        "charlm/schedules.py",
        "rate * (step.double() + 1) / self.warmup_steps",
        "rate * step.double() / self.warmup_steps",
        ("tests/test_schedules.py::test_schedules_are_their_formulas",),
    ),
    Fault(
        "the first parameter of other processes is their own",
        "charlm/trainer.py",
        "self._processes.copy_from_first(self.model.state_dict().values())",
        "self._processes.copy_from_first(list(self.model.state_dict().values())[1:])",
        ("tests/test_distributed.py::test_two_processes_train_as_one_does",),
    ),
    Fault(
        "gradients of the input are not summed over the processes",
        "charlm/ops/_vocab_parallel.py",
        "            gradients.sum_of_input(loss.group)\n",
        "            pass\n",
        ("tests/test_vocab_parallel.py::test_every_combination_of_options_equals_the_op_on_the_whole_weight",),
    ),
    Fault(
        "the logit that classes are compared with is rounded otherwise than the one among them",
        "charlm/ops/_vocab_parallel_log_probs.py",
        "        return logits.scatter_(1, ids, first_logits.where(is_own, logits.gather(1, ids)))\n",
        "        return logits\n",
        (
            "tests/test_vocab_parallel_log_probs.py::"
            "test_an_id_that_is_the_argmax_has_rank_0_however_its_logit_is_rounded",
        ),
    ),
    Fault(
        "an update by one kernel pairs elements that lie in different orders",
        "charlm/optimizers.py",
        "        and gradient.is_contiguous()\n",
        "",
        ("tests/test_optimizers.py::test_an_update_is_that_of_torch_optim",),
    ),
    Fault(
        "gradients are not clipped",
        "charlm/backends/eager.py",
        "nn.utils.clip_grad_norm_(self._parameters, self._options.max_grad_norm)",
        "pass",
        (TRAINING + "the_trainer_does_what_a_plain_pytorch_loop_does",),
    ),
    Fault(
        "the default backend has no kernels",
        "charlm/backends/__init__.py",
        '    if why_no_kernels(model.device) is not None:\n        return "eager"\n',
        "",
        ("tests/test_training_devices.py::test_the_default_without_kernels_is_eager_and_says_why_once",),
    ),
    Fault(
        "a trainer that falls back to plain PyTorch says nothing",
        "charlm/trainer.py",
        "if why is not None and backend is None:",
        "if False:",
        ("tests/test_training_devices.py::test_the_default_without_kernels_is_eager_and_says_why_once",),
    ),
    Fault(
        "a captured step is replayed for parameters that are elsewhere by now",
        "charlm/backends/graphed.py",
        "(self._graph.batch_size, self._graph.addresses) != (batch_size, addresses)",
        "self._graph.batch_size != batch_size",
        (GRAPHED + "other_tensors_are_captured_anew",),
    ),
    Fault(
        "capturing a step makes one",
        "charlm/backends/graphed.py",
        "torch._foreach_copy_(changed, before)",
        "pass",
        (GRAPHED + "the_losses_and_the_state_are_those_of_eager", GRAPHED + "a_capture_that_fails_changes_nothing"),
    ),
    Fault(
        "a chunk of captured steps begins where the last one ended",
        "charlm/backends/graphed.py",
        "chunk.counter.zero_()",
        "chunk.counter.add_(0)",
        (GRAPHED + "the_losses_and_the_state_are_those_of_eager",),
    ),
    Fault(
        "the bias correction of captured steps starts anew with each chunk",
        "charlm/backends/graphed.py",
        'first_step = int(states[0]["step"]) if "step" in states[0] else 0',
        "first_step = 0",
        (GRAPHED + "the_losses_and_the_state_are_those_of_eager",),
    ),
    Fault(
        "a captured step has the learning rate of the first",
        "charlm/backends/graphed.py",
        "chunk.next(chunk.numbers), self._options",
        "chunk.numbers[0], self._options",
        (GRAPHED + "the_losses_and_the_state_are_those_of_eager",),
    ),
    Fault(
        "a captured step takes the batch that it was captured with",
        "charlm/backends/graphed.py",
        "contexts, targets = map(chunk.next, chunk.tokens)",
        "contexts, targets = (tokens[0] for tokens in chunk.tokens)",
        (GRAPHED + "the_losses_and_the_state_are_those_of_eager",),
    ),
    Fault(
        "the whole split counts as all of its examples where a GPU's way is chosen",
        "charlm/backends/fused.py",
        "rows = len(self._split.kept_distinct(with_index=False)) if batch_size is None else batch_size",
        "rows = len(self._split) if batch_size is None else batch_size",
        ("tests/test_ways.py::test_the_whole_split_counts_as_its_distinct_contexts",),
    ),
    Fault(
        "a model that does not fit into the blocks of a GPU is given to them",
        "charlm/backends/ways.py",
        'return "graph"\n    gpu =',
        "pass\n    gpu =",
        ("tests/test_ways.py::test_a_model_that_does_not_fit_is_the_graphs",),
    ),
    Fault(
        "the fused backend drops the softcap",
        "charlm/backends/fused.py",
        'self._softcap = getattr(model, "softcap", None)',
        "self._softcap = None",
        (TRAINING + "eager_ops_and_fused_have_the_same_loss_curve",),
    ),
    Fault(
        "a distinct context counts once in the mean",
        "charlm/evaluation.py",
        "losses = torch.where(counts > 0, -counts * torch.log_softmax(logits, dim=-1), 0.0)",
        "losses = torch.where(counts > 0, -torch.log_softmax(logits, dim=-1), 0.0)",
        ("tests/test_models.py::test_evaluate_is_the_mean_loss_of_all_examples",),
    ),
    Fault(
        "the temperature is not used",
        "charlm/sampler/_tables.py",
        "weights = ((logits - highest) / float(temperature)).exp()",
        "weights = (logits - highest).exp()",
        ("tests/test_sampler.py::test_probabilities_follow_temperature_and_top_k",),
    ),
    Fault(
        "the C program has another generator of random numbers",
        "charlm/export/templates/sample.c",
        "key1 += UINT32_C(0xBB67AE85)",
        "key1 += UINT32_C(0xBB67AE84)",
        ("tests/test_export_c.py::test_a_seed_gives_the_texts_of_charlm_sample",),
    ),
    Fault(
        "the C program has no direct connection",
        "charlm/export/templates/mlp.c",
        "sum += direct_weight[v][i] * x[i]",
        "sum += 0.0 * x[i]",
        ("tests/test_export_c.py::test_probabilities_are_the_models",),
    ),
    Fault(
        "a trigraph ends a string of the C program",
        "charlm/export/c.py",
        """if byte in b'\\\\"?':""",
        """if byte in b'\\\\"':""",
        ("tests/test_export_c.py::test_the_source_is_plain_ascii_without_trigraphs",),
    ),
    Fault(
        "a character of the vocabulary may end the script of the page",
        "charlm/export/html.py",
        'for character in "<>&"',
        'for character in "&"',
        ("tests/test_export_html.py::test_no_character_is_read_as_html",),
    ),
    Fault(
        "the graph's logits are not scaled back after their soft cap",
        "charlm/export/onnx.py",
        'graph.add("Mul", bounded, cap, output="logits")',
        'graph.add("Identity", bounded, output="logits")',
        ("tests/test_export_onnx.py::test_log_probabilities_are_the_models",),
    ),
    Fault(
        "the character that reaches top_p is left out",
        "charlm/sampler/_tables.py",
        "before = ordered.cumsum(dim=1) - ordered",
        "before = ordered.cumsum(dim=1)",
        ("tests/test_constraints.py::test_top_p_keeps_the_fewest_that_have_it",),
    ),
    Fault(
        "what was cut is scored with an end",
        "charlm/sampler/_sampling.py",
        "totals[i] -= scores.of(i)[-1]",
        "pass",
        ("tests/test_constraints.py::test_scores_are_those_of_the_model_whatever_was_drawn_from",),
    ),
    Fault(
        "a sweep that goes on at a rung records it a second time",
        "charlm/sweep/training.py",
        "measuring = stop > recorded and (stop % every == 0 or stop == end)",
        "measuring = stop % every == 0 or stop == end",
        ("tests/test_interruptions.py::test_a_process_that_is_killed_anywhere_loses_nothing_but_time",),
    ),
    Fault(
        "a model that has diverged goes on at a rung",
        "charlm/sweep/halving.py",
        "if math.isfinite(losses[model])]",
        "]",
        ("tests/test_sweep_config.py::test_the_best_go_on",),
    ),
    Fault(
        "rungs come one after another by their own numbers of models",
        "charlm/sweep/halving.py",
        "max(1, models // eta**j)",
        "max(1, models // eta ** (j + 1))",
        (SWEEP + "halving_keeps_the_best",),
    ),
    Fault(
        "the best of the stopped models is lost with the others",
        "charlm/sweep/folder.py",
        "return [*training, min(stopped, key=order).model] if stopped else training",
        "return training",
        (SWEEP + "the_best_of_the_stopped_ones_is_kept_where_all_others_diverge",),
    ),
    Fault(
        "the best model is written through a link",
        "charlm/sweep/training.py",
        "if run_dir.is_symlink() or not run_dir.is_dir():",
        "if not run_dir.is_dir():",
        ("tests/test_sweep_folder.py::test_nothing_is_written_through_a_link",),
    ),
    Fault(
        "steps that no record has are forgotten when a sweep is interrupted",
        "charlm/sweep/_members.py",
        'self.unrecorded = tensors["unrecorded"].clone()',
        'self.unrecorded = tensors["unrecorded"][:0]',
        (SWEEP + "ctrl_c_between_two_steps_loses_none",),
    ),
    Fault(
        "a longer random search tries other settings first",
        "charlm/search_space.py",
        "generator = random.Random(seed)",
        "generator = random.Random(seed + trials)",
        ("tests/test_search_space.py::test_the_first_draws_do_not_depend_on_how_many_there_are",),
    ),
    Fault(
        "the record of the checkpoint's step is dropped",
        "charlm/metrics.py",
        'if record["step"] <= step',
        'if record["step"] < step',
        ("tests/test_checkpoint.py::test_metrics_are_appended_and_truncated_to_a_step",),
    ),
    Fault(
        "a folder that is in use is not noticed",
        "charlm/run_lock.py",
        'raise RunInUseError(f"{folder} is in use: another process is training or saving this run") from None',
        "return",
        ("tests/test_run_lock.py::test_two_trainings_into_one_folder_at_once",),
    ),
    Fault(
        "a pair is written where the pair the other way round belongs",
        "charlm/plots/heat_maps.py",
        "axes.text(column, row, ",
        "axes.text(row, column, ",
        ("tests/test_heat_maps.py::test_pairs_and_counts_are_written_into_their_cells",),
    ),
    Fault(
        "a label does not mind those before it",
        "charlm/plots/_placing.py",
        "        taken = torch.cat([taken, ",
        "        _ = torch.cat([taken, ",
        ("tests/test_embedding_map.py::test_labels_cover_neither_each_other_nor_points",),
    ),
    Fault(
        "a picture shows what comes after the beginning of a text",
        "charlm/plots/distribution.py",
        "torch.cat([padding, tokens])[len(tokens) :]",
        "torch.cat([padding, tokens])[: len(padding)]",
        ("tests/test_plots.py::test_what_comes_next_has_the_probabilities_of_the_model",),
    ),
    Fault(
        "events of steps that a crash has undone are shown beside those of the run that goes on",
        "charlm/tensorboard.py",
        "purge_step=step + 1",
        "purge_step=None",
        ("tests/test_tensorboard.py::test_a_run_that_goes_on_has_each_step_once",),
    ),
]

CUDA = [
    Fault(
        "launches are on the default stream",
        "csrc/bindings/cuda/device_call.cpp",
        "  TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));",
        "  if (device < 0) TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));",
        (DEVICE + "two_streams_at_once",),
    ),
    Fault(
        "an op does not ask whether there is code for the GPU",
        "csrc/bindings/cuda/device_call.cpp",
        "  if (const auto why = why_no_kernels(device.index())) throw std::runtime_error(*why);\n",
        "",
        ("tests/cuda_on_cpu/test_gpus.py::test_ops_say_it_where_they_are_called",),
    ),
    Fault(
        "the last chunk of a short row is read twice",
        "csrc/kernels/cuda/cross_entropy_narrow.cuh",
        "z[k] = chunk.contains(k) ? logit<T, kPlain>(p, input) : -static_cast<T>(INFINITY);",
        "z[k] = logit<T, kPlain>(p, input);",
        (CE + "every_shape_in_every_dtype",),
    ),
    Fault(
        "the last part of a split row is not merged",
        "csrc/kernels/cuda/cross_entropy_wide.cuh",
        "if (row < p.rows && lane < splits) {",
        "if (row < p.rows && lane < splits - 1) {",
        (CE + "few_rows_of_many_classes",),
    ),
    Fault(
        "smoothing leaves the target its whole weight",
        "csrc/kernels/cuda/softmax_row.cuh",
        "target.index_weight = (1 - p.label_smoothing) * target.class_weight;",
        "target.index_weight = target.class_weight;",
        (CE + "every_combination_of_options",),
    ),
    Fault(
        "the last tile of a long run of one token is not added",
        "csrc/kernels/cuda/segmented_sum.cuh",
        "if (first + k <= last) sum += parts[k];",
        "if (first + k < last) sum += parts[k];",
        (EL + "one_token_repeated_everywhere",),
    ),
    Fault(
        "on a GPU, positions of ids lie side by side whatever the stride",
        "csrc/kernels/cuda/token_keys.cuh",
        "static_cast<int64_t>(row[at * ids.position_stride]);",
        "static_cast<int64_t>(row[at]);",
        (EL + "ids_with_any_strides",),
    ),
    Fault(
        "the bias has the gradient of the last chunk alone",
        "csrc/kernels/cuda/output_layer.cuh",
        "gradient.row_stride, first > 0,",
        "gradient.row_stride, false,",
        (CONTRACT + "every_dtype_at_a_size_of_many_tiles",),
    ),
    Fault(
        "keys are read while the tile before is still used",  # a race
        "csrc/kernels/cuda/mlp_tiles.cuh",
        "    __syncthreads();  // the tile before is done with\n",
        "",
        (MLP + "every_shape_in_every_dtype",),
    ),
    Fault(
        "the upstream gradient is not used",
        "csrc/bindings/cuda/upstream.h",
        "*factor = upstream.template const_data_ptr<T>();",
        "*factor = nullptr;",
        (CONTRACT + "the_gradient_is_linear_in_the_upstream_gradient",),
    ),
]

FAULTS = [*PYTHON, *CUDA, *KERNELS, *BINDINGS, *TEXT]
