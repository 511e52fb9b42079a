// Plain text in columns.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace atl::cli {

enum class Align { kLeft, kRight };

// Rows of cells under a heading, each column as wide as its widest cell, two spaces apart.
class Table {
 public:
  struct Column {
    std::string heading;
    Align align = Align::kLeft;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as columns.
  void add_row(std::vector<std::string> cells);
  void add_rule();
  // Lines that each start with `indent` and end with a line break, no spaces at their ends.
  std::string to_string(std::string_view indent) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;  // an empty row is a rule
};

}  // namespace atl::cli
