/**
 * What all scripts of a shard begin with. `KEYS[1]` is the shard's base, `ARGV[1]` the view's counter, `ARGV[2]` its incarnations.
 *
 *   m        hash     number -> "incarnation last added tags", or "x": dead     # -> "power split count"     % -> "position numbers"
 *   f<n>     string   filter of the incarnation with number n: layers of 128, 256, 512 … bytes, one behind the other
 *   w<n>     list     tags that it is asked for; some may be stale
 *   r<p>.<i> hash     records whose prefix of p bits is i: tag -> cells of 4 bytes: pending 1 bit, number 15 bits, guests 16 bits
 *
 * Records lie in many small hashes, as Redis keeps those packed: linear hashing (Litwin, 1980) by prefix, so that a split changes no
 * order. Buckets below `split` have one bit more than `power`. A record's position is bytes 9 to 12 of its tag, which are mixed.
 *
 * Filters are those of filter.ts with more bits and fewer probes, as each probe that sets a bit is a command: 20 bits a tag and 8 probes,
 * (1 - e^(-8/20))^8 = 2^-12.8 a layer.
 */
export const SHARD = `
local K = KEYS[1]
local call = redis.call
local byte, char, sub, rep, match = string.byte, string.char, string.sub, string.rep, string.match
local floor, band, bor, concat = math.floor, bit.band, bit.bor, table.concat
local power, split, count, sweep = 0, 0, 0, false
local infos, byInc, dead = {}, {}, {}
local index, live = {}, {}
for inc in string.gmatch(ARGV[2], '%S+') do
  live[#live + 1] = inc
  index[inc] = #live
end

local function load()
  local flat = call('HGETALL', K .. 'm')
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    if field == '#' then
      local a, b, c = match(value, '^(%d+) (%d+) (%d+)$')
      power, split, count = tonumber(a), tonumber(b), tonumber(c)
    elseif field == '%' then sweep = value
    elseif value == 'x' then dead[tonumber(field)] = true
    else
      local inc, last, added, tags = match(value, '^(%S+) (%d+) (%d+) (%d+)$')
      local info = { inc = inc, last = tonumber(last), added = tonumber(added), tags = tonumber(tags) }
      infos[tonumber(field)] = info
      byInc[inc] = tonumber(field)
    end
  end
end

local function mark()
  local latest = tonumber(ARGV[1])
  for number, info in pairs(infos) do
    if not index[info.inc] and tonumber(match(info.inc, '^%d+')) <= latest then
      call('HSET', K .. 'm', number, 'x')
      dead[number] = true
      byInc[info.inc] = nil
    end
  end
  for number in pairs(dead) do infos[number] = nil end
end

local function position(tag)
  local a, b, c, d = byte(tag, 9, 12)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local function bucketAt(at)
  local bits = power
  local i = floor(at / 2 ^ (32 - bits))
  if i < split then
    bits = bits + 1
    i = floor(at / 2 ^ (32 - bits))
  end
  return K .. 'r' .. bits .. '.' .. i, (i + 1) * 2 ^ (32 - bits)
end
`;

/** For scripts that change records: `get`, `settle`, `add` to filters, `flush`. */
export const CHANGES = `
local recs, stored, dirty, filters, lengths, few = {}, {}, {}, {}, {}, 64
local MASKS = { 128, 64, 32, 16, 8, 4, 2, 1 }

local function parse(value)
  local rec = { g = {}, p = {} }
  for i = 1, #value, 4 do
    local a, b, c, d = byte(value, i, i + 3)
    local number = (a % 128) * 256 + b
    if not infos[number] then rec.cut = true
    else
      if c + d > 0 then rec.g[number] = c * 256 + d end
      if a > 127 then rec.p[number] = true end
    end
  end
  return rec
end

local function pack(rec)
  local cells = {}
  for number, guests in pairs(rec.g) do
    local high = floor(number / 256)
    if rec.p[number] then high = high + 128 end
    cells[#cells + 1] = char(high, number % 256, floor(guests / 256), guests % 256)
  end
  for number in pairs(rec.p) do
    if not rec.g[number] then cells[#cells + 1] = char(floor(number / 256) + 128, number % 256, 0, 0) end
  end
  return concat(cells)
end

local function probes(tag)
  local a, b, c, d, e, f, g, h = byte(tag, 1, 8)
  return ((a * 256 + b) * 256 + c) * 256 + d, ((e * 256 + f) * 256 + g) * 256 + h
end

-- for few tags it asks for bits; for many it reads the whole filter once, as an array of bytes, and writes it once
local function open(number)
  local key = K .. 'f' .. number
  local length = call('STRLEN', key)
  lengths[number] = length
  filters[number] = false
  if length <= 64 * few then
    local bytes, text = {}, call('GET', key) or ''
    for i = 1, length, 64 do
      local some = { byte(text, i, i + 63) }
      for j = 1, #some do bytes[i + j - 1] = some[j] end
    end
    filters[number] = bytes
  end
end

-- Where a tag's probes fall in the layers of so many bytes: eight a layer, one behind the other. It is the same in all filters, and a tag is
-- looked up in those of all hosts, so it is found out once.
local placed, spots, masks, laid, layer, probed = false, {}, {}, 0, 128, 0
local function place(tag, length)
  if placed ~= tag then placed, laid, layer, probed = tag, 0, 128, 0 end
  if laid >= length then return end
  local first, second = probes(tag)
  while laid < length do
    local bits = layer * 8
    local at, step = first % bits, second % bits
    for i = 1, 8 do
      spots[probed + i] = laid + floor(at / 8) + 1
      masks[probed + i] = MASKS[at % 8 + 1]
      at = (at + step) % bits
      step = (step + i) % bits
    end
    probed = probed + 8
    laid = laid + layer
    layer = layer * 2
  end
end

local BIT = { [128] = 0, [64] = 1, [32] = 2, [16] = 3, [8] = 4, [4] = 5, [2] = 6, [1] = 7 }
local function bitAt(i) return (spots[i] - 1) * 8 + BIT[masks[i]] end

local function has(number, tag)
  local filter = filters[number]
  if filter == nil then
    open(number)
    filter = filters[number]
  end
  local length = lengths[number]
  place(tag, length)
  local offset, size, from = 0, 128, 0
  while offset < length do
    local found = true
    if filter then
      for i = from + 1, from + 8 do
        if band(filter[spots[i]], masks[i]) == 0 then
          found = false
          break
        end
      end
    else
      for i = from + 1, from + 8 do
        if call('GETBIT', K .. 'f' .. number, bitAt(i)) == 0 then
          found = false
          break
        end
      end
    end
    if found then return true end
    offset = offset + size
    size = size * 2
    from = from + 8
  end
  return false
end

local function add(number, tag)
  if has(number, tag) then return end
  local info, key = infos[number], K .. 'f' .. number
  local filter, length = filters[number], lengths[number]
  -- 128 bytes have room for 51 tags
  if info.added >= floor(length / 128) * 51 then
    local more = length + 128
    -- SET allocates just what is needed; growing in place would take twice as much
    if filter then for i = 1, more do filter[length + i] = 0 end
    else call('SET', key, (call('GET', key) or '') .. rep('\\0', more)) end
    length = length + more
    lengths[number] = length
  end
  place(tag, length)
  -- the last layer's
  local last = floor(math.log(length / 128 + 1) / math.log(2) + 0.5) * 8
  for i = last - 7, last do
    if filter then filter[spots[i]] = bor(filter[spots[i]], masks[i])
    else call('SETBIT', key, bitAt(i), 1) end
  end
  info.added = info.added + 1
  info.dirty = true
end

local function write(number)
  local bytes, parts = filters[number], {}
  if not bytes then return end
  for i = 1, #bytes, 1024 do parts[#parts + 1] = char(unpack(bytes, i, math.min(#bytes, i + 1023))) end
  if #bytes > 0 then call('SET', K .. 'f' .. number, concat(parts)) end
end

-- a record goes where nobody is asked and one guest or none holds the tag; its host's filter takes it over
local function settle(tag, rec)
  if next(rec.p) then return end
  local sum, holder = 0, nil
  for number, guests in pairs(rec.g) do
    sum = sum + guests
    holder = number
  end
  if sum > 1 then return end
  if holder then add(holder, tag) end
  recs[tag] = false
end

local function take(tag, value)
  local rec = parse(value)
  recs[tag] = rec
  stored[tag] = true
  if rec.cut then
    -- what it had of dead hosts is gone with this, and the record, perhaps
    dirty[tag] = true
    settle(tag, rec)
  end
end

local function get(tag)
  if recs[tag] == nil then
    local value = call('HGET', bucketAt(position(tag)), tag)
    if value then take(tag, value) else recs[tag] = false end
  end
  return recs[tag]
end

-- many fields of one bucket with one command
local function put(fields)
  for key, list in pairs(fields) do
    for i = 1, #list, 1000 do call('HSET', key, unpack(list, i, math.min(#list, i + 999))) end
  end
end

local function splitOne()
  local key = K .. 'r' .. power .. '.' .. split
  local flat = call('HGETALL', key)
  if #flat > 0 then
    call('DEL', key)
    local fields = {}
    for i = 1, #flat, 2 do
      local into = K .. 'r' .. (power + 1) .. '.' .. floor(position(flat[i]) / 2 ^ (31 - power))
      local list = fields[into] or {}
      fields[into] = list
      list[#list + 1] = flat[i]
      list[#list + 1] = flat[i + 1]
    end
    put(fields)
  end
  split = split + 1
  if split == 2 ^ power then
    power = power + 1
    split = 0
  end
end

local function flush()
  local fields = {}
  for tag in pairs(dirty) do
    if not recs[tag] then count = count - call('HDEL', bucketAt(position(tag)), tag)
    elseif not stored[tag] then count = count + 1 end
  end
  while count > 32 * (2 ^ power + split) do splitOne() end
  for tag in pairs(dirty) do
    local rec = recs[tag]
    if rec then
      local key = bucketAt(position(tag))
      local list = fields[key] or {}
      fields[key] = list
      list[#list + 1] = tag
      list[#list + 1] = pack(rec)
    end
  end
  put(fields)
  for number, info in pairs(infos) do
    if info.dirty then
      if info.added > 0 then write(number) end
      call('HSET', K .. 'm', number, info.inc .. ' ' .. string.format('%.0f %d %d', info.last, info.added, info.tags))
    end
  end
  call('HSET', K .. 'm', '#', power .. ' ' .. split .. ' ' .. count)
end
`;
