#include "cli/table.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace atl::cli {
namespace {

constexpr std::string_view kGap = "  ";

std::string padded(const std::string& cell, size_t width, Align align) {
  const std::string spaces(width - cell.size(), ' ');
  return align == Align::kLeft ? cell + spaces : spaces + cell;
}

}  // namespace

void Table::add_row(std::vector<std::string> cells) {
  CHECK_EQ(cells.size(), columns_.size());
  rows_.push_back(std::move(cells));
}

void Table::add_rule() { rows_.emplace_back(); }

std::string Table::to_string(std::string_view indent) const {
  std::vector<std::string> headings;
  std::vector<size_t> widths;
  for (const Column& column : columns_) {
    headings.push_back(column.heading);
    widths.push_back(column.heading.size());
  }
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  const auto add_line = [&](const std::vector<std::string>& row) {
    std::string line(indent);
    for (size_t i = 0; i < columns_.size(); ++i) {
      if (i > 0) line += kGap;
      line +=
          row.empty() ? std::string(widths[i], '-') : padded(row[i], widths[i], columns_[i].align);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  };
  add_line(headings);
  add_line({});
  for (const auto& row : rows_) add_line(row);
  return text;
}

}  // namespace atl::cli
