// charlm._text.Sampler. Types and meaning: charlm/_text.pyi.
#include "sampler_bindings.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "buffers.h"
#include "sampler.h"

namespace charlm::text {
namespace {

// A sampler for one thread at a time. Others get an error: to wait with the GIL for one that needs it is a deadlock.
// One that ran out of memory halfway through a change can only be thrown away.
class ExclusiveSampler {
 public:
  ExclusiveSampler(std::u32string characters, int64_t context_length, int64_t max_contexts)
      : sampler_(std::move(characters), context_length, max_contexts) {}

  void start(const py::buffer& context, uint64_t seed, int64_t first, int64_t count, int64_t max_tokens, int32_t end) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = context.request();
    change([&] { sampler_.start(view_as<int32_t>(info), seed, first, count, max_tokens, end); });
  }

  py::bytearray advance() {
    const std::unique_lock lock = acquire();
    std::span<const int32_t> missing;
    change([&] { missing = sampler_.advance(); });
    auto [bytes, contexts] = allocate<int32_t>(std::ssize(missing));
    std::copy(missing.begin(), missing.end(), contexts.begin());
    return bytes;
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

  py::list texts(const std::u32string& prefix) {
    const std::unique_lock lock = acquire();
    py::list texts(sampler_.size());
    std::u32string text;
    for (int64_t i = 0; i < sampler_.size(); ++i) {
      text = prefix;
      sampler_.append_text(i, text);
      texts[i] = to_str(text);
    }
    return texts;
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
      .def("start", &ExclusiveSampler::start, py::arg("context"), py::arg("seed"), py::arg("first"), py::arg("count"),
           py::arg("max_tokens"), py::arg("end"))
      .def("advance", &ExclusiveSampler::advance)
      .def("add", &ExclusiveSampler::add, py::arg("weights"))
      .def_property_readonly("unfinished", &ExclusiveSampler::unfinished)
      .def("texts", &ExclusiveSampler::texts, py::arg("prefix"));
}

}  // namespace charlm::text
