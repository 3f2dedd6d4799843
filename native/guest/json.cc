#include "guest/json.h"

#include <cstdio>
#include <cstdlib>

namespace guest {

namespace {

struct Cursor {
  std::string_view text;
  size_t at = 0;

  void SkipSpace() {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r' || text[at] == '\n')) at++;
  }
  bool Take(char c) {
    SkipSpace();
    if (at >= text.size() || text[at] != c) return false;
    at++;
    return true;
  }
  bool TakeWord(std::string_view word) {
    if (text.substr(at, word.size()) != word) return false;
    at += word.size();
    return true;
  }
  static bool IsDigit(char c) { return c >= '0' && c <= '9'; }
  char Peek() const { return at < text.size() ? text[at] : '\0'; }

  bool TakeString(std::string* out) {
    if (!Take('"')) return false;
    out->clear();
    while (at < text.size()) {
      const char c = text[at++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c != '\\') {
        out->push_back(c);
        continue;
      }
      if (at >= text.size()) return false;
      const char escape = text[at++];
      constexpr std::string_view kFrom = "\"\\/bfnrt";
      constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
      const size_t which = kFrom.find(escape);
      if (which != std::string_view::npos) {
        out->push_back(kTo[which]);
      } else if (escape != 'u' || !TakeCodePoint(out)) {
        return false;
      }
    }
    return false;
  }
  // \uXXXX, ASCII only: nothing that this guest is told needs more.
  bool TakeCodePoint(std::string* out) {
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
      const char c = Peek();
      const bool letter = (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      if (!IsDigit(c) && !letter) return false;
      value = value * 16 + static_cast<unsigned>(IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
      at++;
    }
    if (value >= 0x80) return false;
    out->push_back(static_cast<char>(value));
    return true;
  }
  bool TakeNumber(std::string* out) {
    const size_t start = at;
    if (Peek() == '-') at++;
    const size_t digits = at;
    while (IsDigit(Peek())) at++;
    if (at == digits || (text[digits] == '0' && at > digits + 1)) return false;
    if (Peek() == '.') {
      const size_t fraction = ++at;
      while (IsDigit(Peek())) at++;
      if (at == fraction) return false;
    }
    if (Peek() == 'e' || Peek() == 'E') {
      at++;
      if (Peek() == '+' || Peek() == '-') at++;
      const size_t exponent = at;
      while (IsDigit(Peek())) at++;
      if (at == exponent) return false;
    }
    *out = text.substr(start, at - start);
    return true;
  }
};

}  // namespace

bool JsonObject::Parse(std::string_view text) {
  fields_.clear();
  Cursor cursor{text};
  if (!cursor.Take('{')) return false;
  if (!cursor.Take('}')) {
    do {
      std::string name;
      Value value;
      if (!cursor.TakeString(&name) || !cursor.Take(':')) return false;
      cursor.SkipSpace();
      if (cursor.Peek() == '"') {
        value.type = Type::kString;
        if (!cursor.TakeString(&value.text)) return false;
      } else if (cursor.TakeWord("true")) {
        value = {Type::kBool, "true"};
      } else if (cursor.TakeWord("false")) {
        value = {Type::kBool, "false"};
      } else {
        value.type = Type::kNumber;
        if (!cursor.TakeNumber(&value.text)) return false;
      }
      if (!fields_.emplace(std::move(name), std::move(value)).second) return false;  // a field named twice
    } while (cursor.Take(','));
    if (!cursor.Take('}')) return false;
  }
  cursor.SkipSpace();
  return cursor.at == text.size();
}

const std::string* JsonObject::String(const std::string& name) const {
  const auto found = fields_.find(name);
  return found != fields_.end() && found->second.type == Type::kString ? &found->second.text : nullptr;
}

bool JsonObject::Count(const std::string& name, uint64_t* value) const {
  const auto found = fields_.find(name);
  if (found == fields_.end() || found->second.type != Type::kNumber) return false;
  const std::string& digits = found->second.text;
  if (digits.size() > 16 || digits.find_first_not_of("0123456789") != std::string::npos) return false;
  *value = strtoull(digits.c_str(), nullptr, 10);
  return *value <= 1ull << 53;
}

std::string JsonQuote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      out.push_back(c);
    }
  }
  return out + "\"";
}

std::string JsonHash(uint64_t hash) {
  char text[24];
  snprintf(text, sizeof text, "\"%016llx\"", static_cast<unsigned long long>(hash));
  return text;
}

std::string JsonDecimal(double value) {
  char text[48];
  snprintf(text, sizeof text, "%.3f", value);
  return text;
}

}  // namespace guest
