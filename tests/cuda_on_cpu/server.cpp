// Reads calls from standard input and writes their results to standard output, until the input ends.
#include "server.h"

#include <stdio.h>

#include <functional>
#include <iostream>

namespace simulator {
namespace {

std::map<std::string, int (*)(const Call&)>& ops() {
  static std::map<std::string, int (*)(const Call&)> registered;
  return registered;
}

}  // namespace

Op::Op(const char* name, int (*run)(const Call&)) { ops()[name] = run; }

charlm::ClassMatrix Call::class_matrix(const std::string& name) const {
  charlm::ClassMatrix matrix;
  matrix.data = buffer<void>(name.c_str());
  if (matrix.data == nullptr) return matrix;
  matrix.storage = storage();
  matrix.inner = integer((name + ".inner").c_str());
  matrix.outer_stride = integer((name + ".outer_stride").c_str());
  matrix.inner_stride = integer((name + ".inner_stride").c_str());
  matrix.class_stride = integer((name + ".class_stride").c_str());
  return matrix;
}

charlm::TokenIds Call::token_ids() const {
  charlm::TokenIds ids;
  ids.data = buffer<void>("ids");
  ids.type = static_cast<charlm::IntegerType>(integer("ids.type"));
  ids.rows = integer("rows");
  ids.context_length = integer("context_length");
  ids.row_stride = integer("ids.row_stride");
  ids.position_stride = integer("ids.position_stride");
  return ids;
}

// Lines "integer NAME VALUE", "real NAME VALUE", "input NAME BYTES OFFSET" and the bytes, "output NAME BYTES OFFSET"; a
// line "run OP" ends the call.
bool Call::read() {
  std::string kind, name;
  while (std::cin >> kind >> name) {
    if (kind == "run") {
      op = name;
      return true;
    }
    if (kind == "integer") {
      std::cin >> integers_[name];
    } else if (kind == "real") {
      std::cin >> reals_[name];
    } else {
      int64_t bytes = 0, offset = 0;
      std::cin >> bytes >> offset;
      std::cin.get();  // the end of the line
      void* data = allocate(static_cast<size_t>(bytes), static_cast<size_t>(offset), kind == "input");
      if (kind == "input") std::cin.read(static_cast<char*>(data), bytes);
      buffers_[name] = {data, bytes, kind != "input"};
    }
  }
  return false;
}

void Call::answer(int error) const {
  std::cout << error << '\n';
  for (const auto& [name, buffer] : buffers_) {
    if (buffer.is_output) std::cout.write(static_cast<const char*>(buffer.data), buffer.bytes);
  }
  std::cout.flush();
}

}  // namespace simulator

int main() {
  std::ios::sync_with_stdio(false);
  std::cin.tie(nullptr);
  simulator::seed(0);
  while (true) {
    simulator::Call call;
    if (!call.read()) return 0;
    if (call.op == "seed") {
      simulator::seed(static_cast<uint64_t>(call.integer("value")));
      call.answer(0);
    } else if (call.op == "plant") {
      simulator::plant(static_cast<int>(call.integer("number")));
      call.answer(0);
    } else {
      call.answer(simulator::ops().at(call.op)(call));
    }
    simulator::free_all();
  }
}
