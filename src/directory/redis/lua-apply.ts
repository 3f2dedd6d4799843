/**
 * A report's part of one shard, all or nothing, and once.
 *
 *   ARGV 3  own incarnation
 *        4  the report's number in it, from 1
 *        5  the number of the report before it that changed this shard; 0: none
 *        6  operations: '+' tag, '-' tag, '=' tag and guests (2 bytes)
 *        7  how many
 *
 * Returns `lost`; or `ok`, 1 if the filter is worn out, and incarnations that are asked for something here: after a repetition all of them.
 */
import { CHANGES, SHARD } from './lua-shard.ts';

export const APPLY = `${SHARD}${CHANGES}
local WORN, SMALL = 4, 64
local inc, number, before, ops = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
few = tonumber(ARGV[7])
load()
mark()
local own = byInc[inc]
if own then
  local last = infos[own].last
  if last >= number then
    local asked = {}
    for other, info in pairs(infos) do
      if call('EXISTS', K .. 'w' .. other) == 1 then asked[#asked + 1] = info.inc end
    end
    return { 'ok', 0, asked }
  end
  if last ~= before then return { 'lost' } end
  if infos[own].added > 0 and call('EXISTS', K .. 'f' .. own) == 0 then return { 'lost' } end
else
  if before > 0 then return { 'lost' } end
  own = 1
  while infos[own] or dead[own] do own = own + 1 end
  if own > 32767 then return redis.error_reply('ERR a shard has too many hosts') end
  infos[own] = { inc = inc, last = 0, added = 0, tags = 0 }
  byInc[inc] = own
end
local info = infos[own]
local asked, answered, answers = {}, {}, 0
local at = 1
while at <= #ops do
  local op, tag = sub(ops, at, at), sub(ops, at + 1, at + 16)
  at = at + 17
  local rec = get(tag)
  if op == '+' then
    info.tags = info.tags + 1
    if rec then
      rec.g[own] = math.min(65535, (rec.g[own] or 0) + 1)
      dirty[tag] = true
    else
      local matched = {}
      for other in pairs(infos) do
        if has(other, tag) then matched[#matched + 1] = other end
      end
      if #matched == 0 then add(own, tag)
      else
        rec = { g = { [own] = 1 }, p = {} }
        for _, other in ipairs(matched) do
          rec.p[other] = true
          asked[other] = asked[other] or {}
          table.insert(asked[other], tag)
        end
        recs[tag] = rec
        dirty[tag] = true
      end
    end
  elseif op == '-' then
    info.tags = math.max(0, info.tags - 1)
    if rec then
      local guests = (rec.g[own] or 0) - 1
      rec.g[own] = guests > 0 and guests or nil
      dirty[tag] = true
      settle(tag, rec)
    end
  else
    local a, b = byte(ops, at, at + 1)
    at = at + 2
    answered[tag] = true
    answers = answers + 1
    if rec then
      local guests = a * 256 + b
      rec.g[own] = guests > 0 and guests or nil
      rec.p[own] = nil
      dirty[tag] = true
      settle(tag, rec)
    end
  end
end
info.last = number
info.dirty = true
flush()
if answers > 0 then
  -- answers come in the order of questions; what is answered in another one is left to be found stale
  local done = 0
  for _, tag in ipairs(call('LRANGE', K .. 'w' .. own, 0, answers - 1)) do
    if not answered[tag] then break end
    done = done + 1
  end
  if done > 0 then call('LTRIM', K .. 'w' .. own, done, -1) end
end
local names = {}
for other, tags in pairs(asked) do
  for i = 1, #tags, 1000 do call('RPUSH', K .. 'w' .. other, unpack(tags, i, math.min(#tags, i + 999))) end
  names[#names + 1] = infos[other].inc
end
return { 'ok', info.added > WORN * math.max(info.tags, SMALL) and 1 or 0, names }
`;
