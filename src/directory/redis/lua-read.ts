/** Scripts that ask a shard: who holds tags, what a host lacks, what it is asked for. And the sweep. */
import { CHANGES, SHARD } from './lua-shard.ts';

/** A record's cells of hosts in the view; nil where it would have been taken out, had those that are gone been. */
const CELLS = `
load()
local function cells(value)
  local out, sum, asked = {}, 0, false
  for i = 1, #value, 4 do
    local a, b, c, d = byte(value, i, i + 3)
    local info = infos[(a % 128) * 256 + b]
    local at = info and index[info.inc]
    if at then
      if a > 127 then asked = true end
      if c + d > 0 then
        sum = sum + c * 256 + d
        out[#out + 1] = char(floor((at - 1) / 256), (at - 1) % 256, c, d)
      end
    end
  end
  if #out == 0 or (sum <= 1 and not asked) then return nil end
  return char(floor(#out / 256), #out % 256) .. concat(out)
end
`;

/** ARGV 3: tags, packed. For each: how many cells (2 bytes), and those: index into the view, guests (2 bytes each). */
export const HOLDERS = `${SHARD}${CELLS}
local tags, out = ARGV[3], {}
for at = 1, #tags, 16 do
  local tag = sub(tags, at, at + 15)
  local value = call('HGET', bucketAt(position(tag)), tag)
  out[#out + 1] = value and cells(value) or '\\0\\0'
end
return concat(out)
`;

/**
 * ARGV 3: own incarnation, or none. 4: position to begin at. 5: tags at most.
 * Returns the position to go on at (2^32: the end), how many tags, and each with its cells.
 */
export const LACKING = `${SHARD}${CELLS}
local MOST_BUCKETS = 512
local own = index[ARGV[3]]
local at, limit, out = tonumber(ARGV[4]), tonumber(ARGV[5]), {}
local mine = own and char(floor((own - 1) / 256), (own - 1) % 256)
local function lacks(found)
  if not mine then return true end
  for i = 3, #found, 4 do if sub(found, i, i + 1) == mine then return false end end
  return true
end
for _ = 1, MOST_BUCKETS do
  if at >= 2 ^ 32 or #out >= limit then break end
  local key, ends = bucketAt(at)
  local flat, part = call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    local place = position(flat[i])
    if place >= at then
      local found = cells(flat[i + 1])
      if found and lacks(found) then part[#part + 1] = { place, flat[i] .. found } end
    end
  end
  local room = limit - #out
  if #part > room then
    -- only so many of the bucket, and all that have the position of the last
    table.sort(part, function(a, b) return a[1] < b[1] end)
    while room < #part and part[room + 1][1] == part[room][1] do room = room + 1 end
    if room < #part then ends = part[room][1] + 1 end
  end
  for i = 1, math.min(room, #part) do out[#out + 1] = part[i][2] end
  at = ends
end
return { string.format('%.0f', at), #out, concat(out) }
`;

/**
 * ARGV 3: own incarnation. 4: the number of its last report that changed this shard, 0: none. 5: tags at most.
 * Returns `lost`; or `ok`, and tags that it is asked for; none: there are no more.
 */
export const WANTED = `${SHARD}
load()
local own, before, most = byInc[ARGV[3]], tonumber(ARGV[4]), tonumber(ARGV[5])
if before > 0 and (not own or infos[own].last < before) then return { 'lost' } end
if not own then return { 'ok', '' } end
if infos[own].added > 0 and call('EXISTS', K .. 'f' .. own) == 0 then return { 'lost' } end
local function isAsked(tag)
  local value = call('HGET', bucketAt(position(tag)), tag)
  if not value then return false end
  for i = 1, #value, 4 do
    local a, b = byte(value, i, i + 1)
    if a > 127 and (a - 128) * 256 + b == own then return true end
  end
  return false
end
local key, out, at, stale = K .. 'w' .. own, {}, 0, 0
while #out < most do
  local tags = call('LRANGE', key, at, at + most - 1)
  if #tags == 0 then break end
  for _, tag in ipairs(tags) do
    if #out < most and isAsked(tag) then out[#out + 1] = tag
    elseif #out == 0 then stale = stale + 1 end
  end
  at = at + #tags
end
if stale > 0 then call('LTRIM', key, stale, -1) end
return { 'ok', concat(out) }
`;

/** ARGV 3: buckets at most. Returns 1 while there is more to sweep. */
export const SWEEP = `${SHARD}${CHANGES}
load()
mark()
local at, list = 0, {}
if sweep then
  local place, numbers = match(sweep, '^(%d+) (.*)$')
  at = tonumber(place)
  for number in string.gmatch(numbers, '%d+') do list[#list + 1] = tonumber(number) end
else
  for number in pairs(dead) do list[#list + 1] = number end
  if #list == 0 then return 0 end
end
for _ = 1, tonumber(ARGV[3]) do
  if at >= 2 ^ 32 then break end
  local key, ends = bucketAt(at)
  local flat = call('HGETALL', key)
  for i = 1, #flat, 2 do
    local value = flat[i + 1]
    for j = 1, #value, 4 do
      local a, b = byte(value, j, j + 1)
      if not infos[(a % 128) * 256 + b] then
        take(flat[i], value)
        break
      end
    end
  end
  at = ends
end
flush()
if at < 2 ^ 32 then
  call('HSET', K .. 'm', '%', string.format('%.0f ', at) .. concat(list, ' '))
  return 1
end
for _, number in ipairs(list) do
  call('DEL', K .. 'f' .. number, K .. 'w' .. number)
  call('HDEL', K .. 'm', number)
  dead[number] = nil
end
call('HDEL', K .. 'm', '%')
if count == 0 and not next(infos) and not next(dead) then call('DEL', K .. 'm') end
return next(dead) and 1 or 0
`;

/** Deletes a shard of a domain that was removed. ARGV 3: buckets at most. Returns 1 while there is more. */
export const BURY = `${SHARD}
load()
local at = sweep and tonumber(match(sweep, '^%d+')) or 0
for _ = 1, tonumber(ARGV[3]) do
  if at >= 2 ^ 32 then break end
  local key, ends = bucketAt(at)
  call('UNLINK', key)
  at = ends
end
if at < 2 ^ 32 then
  call('HSET', K .. 'm', '%', string.format('%.0f ', at))
  return 1
end
for number in pairs(infos) do call('UNLINK', K .. 'f' .. number, K .. 'w' .. number) end
for number in pairs(dead) do call('UNLINK', K .. 'f' .. number, K .. 'w' .. number) end
call('UNLINK', K .. 'm')
return 0
`;
