// charlm._text.Sampler. Types and meaning: charlm/_text.pyi.
#include "sampler_bindings.h"

#include <cstdint>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "buffers.h"
#include "sampler.h"

namespace charlm::text {
namespace {

py::bytearray to_bytearray(std::span<const int32_t> tokens) {
  return py::bytearray(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
}

// A sampler for one thread at a time. Others get an error: to wait with the GIL for one that needs it is a deadlock.
// One that ran out of memory halfway through a change can only be thrown away.
class ExclusiveSampler {
 public:
  ExclusiveSampler(std::u32string characters, int64_t context_length, int64_t max_contexts)
      : sampler_(std::move(characters), context_length, max_contexts) {}

  void exclude(const py::bytes& utf8) {
    const std::unique_lock lock = acquire();
    const std::string_view text = utf8;
    change([&] { sampler_.exclude(text); });
  }

  void exclude_lines(const py::buffer& tokens, int token_size, int32_t boundary) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = tokens.request();
    with_token_type(token_size, [&](auto zero) {
      const auto all = view_as<decltype(zero)>(info);
      change([&] { sampler_.exclude_lines(all, boundary); });
    });
  }

  void constrain(const py::buffer& classes, const py::buffer& next, const py::buffer& accepting, int32_t end) {
    const std::unique_lock lock = acquire();
    const py::buffer_info infos[] = {classes.request(), next.request(), accepting.request()};
    const auto of_tokens = view_as<uint32_t>(infos[0]);
    const auto of_states = view_as<uint32_t>(infos[1]);
    const auto accepted = view_as<uint8_t>(infos[2]);
    change([&] {
      Automaton automaton({of_tokens.begin(), of_tokens.end()}, {of_states.begin(), of_states.end()},
                          {accepted.begin(), accepted.end()});
      sampler_.chain().reset(std::move(automaton), end);
    });
  }

  void open(const py::buffer& context, uint32_t state) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = context.request();
    change([&] { sampler_.chain().open(view_as<int32_t>(info), state); });
  }

  py::bytearray explore() {
    const std::unique_lock lock = acquire();
    std::span<const int32_t> missing;
    change([&] { missing = sampler_.chain().explore(); });
    return to_bytearray(missing);
  }

  void add_explored(const py::buffer& weights) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = weights.request();
    change([&] { sampler_.chain().add(view_as<double>(info)); });
  }

  bool solve(int64_t min_length, int64_t max_length) {
    const std::unique_lock lock = acquire();
    bool is_solved = false;
    change([&] { is_solved = sampler_.chain().solve(min_length, max_length); });
    return is_solved;
  }

  double acceptance(const py::buffer& context, uint32_t state, int64_t length) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = context.request();
    return sampler_.chain().acceptance(view_as<int32_t>(info), state, length);
  }

  void start(const py::buffer& context, uint64_t seed, int64_t first, int64_t count, int64_t max_tokens, int32_t end,
             const std::string& prefix, int64_t min_tokens, bool must_end, bool unique, bool chained, uint32_t state,
             int64_t length, int64_t attempts) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = context.request();
    change([&] {
      sampler_.start({.context = view_as<int32_t>(info),
                      .prefix = prefix,
                      .seed = seed,
                      .first = first,
                      .count = count,
                      .min_tokens = min_tokens,
                      .max_tokens = max_tokens,
                      .end = end,
                      .must_end = must_end,
                      .is_unique = unique,
                      .is_chained = chained,
                      .state = state,
                      .length = length,
                      .attempts = attempts});
    });
  }

  py::bytearray advance() {
    const std::unique_lock lock = acquire();
    std::span<const int32_t> missing;
    change([&] { missing = sampler_.advance(); });
    return to_bytearray(missing);
  }

  void add(const py::buffer& weights) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = weights.request();
    change([&] { sampler_.add(view_as<double>(info)); });
  }

  int64_t unfinished() {
    const std::unique_lock lock = acquire();
    return sampler_.unfinished();
  }

  int64_t size() {
    const std::unique_lock lock = acquire();
    return sampler_.size();
  }

  int64_t draws() {
    const std::unique_lock lock = acquire();
    return sampler_.draws();
  }

  py::list texts() {
    const std::unique_lock lock = acquire();
    py::list texts(sampler_.size());
    std::string text;
    for (int64_t i = 0; i < sampler_.size(); ++i) {
      text.clear();
      sampler_.append_text(i, text);
      PyObject* object = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "strict");
      if (object == nullptr) throw py::error_already_set();
      texts[i] = py::reinterpret_steal<py::str>(object);
    }
    return texts;
  }

  py::bytes lines() {
    const std::unique_lock lock = acquire();
    std::string lines;
    {
      py::gil_scoped_release release;
      for (int64_t i = 0; i < sampler_.size(); ++i) {
        sampler_.append_text(i, lines);
        lines.push_back('\n');
      }
    }
    return py::bytes(lines);
  }

 private:
  std::unique_lock<std::mutex> acquire() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) throw std::runtime_error("another thread is using this Sampler");
    if (broken_) throw std::runtime_error("this Sampler ran out of memory, and cannot go on");
    return lock;
  }

  // Without the GIL. What the caller has done wrong is found before anything changes.
  template <typename Change>
  void change(const Change& body) {
    py::gil_scoped_release release;
    broken_ = true;
    try {
      body();
    } catch (const std::invalid_argument&) {
      broken_ = false;
      throw;
    }
    broken_ = false;
  }

  std::mutex mutex_;
  bool broken_ = false;
  Sampler sampler_;
};

}  // namespace

void bind_sampler(py::module_& module) {
  py::class_<ExclusiveSampler>(module, "Sampler")
      .def(py::init<std::u32string, int64_t, int64_t>(), py::arg("characters"), py::arg("context_length"),
           py::arg("max_contexts"))
      .def("exclude", &ExclusiveSampler::exclude, py::arg("utf8"))
      .def("exclude_lines", &ExclusiveSampler::exclude_lines, py::arg("tokens"), py::arg("token_size"),
           py::arg("boundary"))
      .def("constrain", &ExclusiveSampler::constrain, py::arg("classes"), py::arg("next"), py::arg("accepting"),
           py::arg("end"))
      .def("open", &ExclusiveSampler::open, py::arg("context"), py::arg("state"))
      .def("explore", &ExclusiveSampler::explore)
      .def("add_explored", &ExclusiveSampler::add_explored, py::arg("weights"))
      .def("solve", &ExclusiveSampler::solve, py::arg("min_length"), py::arg("max_length"))
      .def("acceptance", &ExclusiveSampler::acceptance, py::arg("context"), py::arg("state"), py::arg("length"))
      .def("start", &ExclusiveSampler::start, py::arg("context"), py::arg("seed"), py::arg("first"), py::arg("count"),
           py::arg("max_tokens"), py::arg("end"), py::kw_only(), py::arg("prefix") = "", py::arg("min_tokens") = 0,
           py::arg("must_end") = false, py::arg("unique") = false, py::arg("chained") = false, py::arg("state") = 1,
           py::arg("length") = 0, py::arg("attempts") = 1)
      .def("advance", &ExclusiveSampler::advance)
      .def("add", &ExclusiveSampler::add, py::arg("weights"))
      .def_property_readonly("unfinished", &ExclusiveSampler::unfinished)
      .def_property_readonly("size", &ExclusiveSampler::size)
      .def_property_readonly("draws", &ExclusiveSampler::draws)
      .def("texts", &ExclusiveSampler::texts)
      .def("lines", &ExclusiveSampler::lines);
}

}  // namespace charlm::text
