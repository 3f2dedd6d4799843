// As much JSON as the control socket needs: flat objects in, any text out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace guest {

// One JSON object whose values are strings, numbers or booleans; everything else is refused.
class JsonObject {
 public:
  bool Parse(std::string_view text);
  // Null where the field is absent or of another type.
  const std::string* String(const std::string& name) const;
  // A whole number from 0 to 2^53; false where the field is absent or anything else.
  bool Count(const std::string& name, uint64_t* value) const;

 private:
  enum class Type { kString, kNumber, kBool };
  struct Value {
    Type type;
    std::string text;
  };
  std::map<std::string, Value> fields_;
};

// A string as JSON, in quotes.
std::string JsonQuote(std::string_view text);
// A 64-bit hash: 16 hex digits in quotes, as a JSON number would lose bits.
std::string JsonHash(uint64_t hash);
// A number with three digits after the point.
std::string JsonDecimal(double value);

}  // namespace guest
