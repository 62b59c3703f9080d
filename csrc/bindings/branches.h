// Which way a binding went, "<op>/<branch>": the tests ask, to show that every branch is reached.
#pragma once

namespace charlm {

void took_branch(const char* name);
const char* last_branch();

}  // namespace charlm
