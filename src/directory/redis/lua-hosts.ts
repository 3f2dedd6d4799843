/**
 * The registry: hosts, their leases and reports, domains. All in one slot, each operation one script, so that they have an order.
 *
 *   h            hash    host -> "epoch sequence incarnation begun leaseEnd anew": the known ones
 *   l            hash    host -> "epoch sequence at": those that are gone; the last ones
 *   n            string  counter of incarnations and generations
 *   D            hash    domain -> generation
 *   T            hash    "domain.generation" -> "removed due": its shards are to be deleted, again and again for a while, as a report
 *                        that was on its way may have come to them late
 *   d:<inc>      hash    domain -> generation, or "lost": what an incarnation has told of
 *   v:<inc>:<g>  string  4 bytes a shard: the number of the last complete report that changed it
 *   g:<inc>:<g>  set     guests
 *   w:<inc>      hash    "domain.generation:shard" -> version: where it may be asked for something
 *   s            string  "at position": of the sweep
 *   H: B o c             hints: hints.ts
 *
 * A counter is the time in milliseconds, or one more than the last: it grows also where a fail-over has lost the last ones. Sequences and
 * epochs are kept as they came, as text: Lua would print large ones short.
 */
import { SHARDS } from './mix.ts';

export const MOST_HOSTS = 1024;
export const MOST_DOMAINS = 1024;
const MOST_LAPSED = 4096;
/** Shards whose state an agent checks with each report and heartbeat. */
const CHECKED = 16;
/** How long a removed domain's shards are looked at; far longer than any call takes. */
const BURIED_MS = 600_000;
/** Marks in one answer. */
const MOST_MARKS = 512;

export const HOSTS = `
local K = KEYS[1]
local call, match = redis.call, string.match
local SHARDS, MOST_HOSTS, MOST_DOMAINS, MOST_LAPSED = ${SHARDS}, ${MOST_HOSTS}, ${MOST_DOMAINS}, ${MOST_LAPSED}
local op = ARGV[1]
local time = call('TIME')
local unix = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local now = tonumber(ARGV[2]) or unix
local lease = tonumber(ARGV[3])
local next_argument = 4
local function take()
  next_argument = next_argument + 1
  return ARGV[next_argument - 1]
end
local function text(n) return string.format('%.0f', n) end

local function issue()
  local counter = math.max(unix, (tonumber(call('GET', K .. 'n')) or 0) + 1)
  call('SET', K .. 'n', text(counter))
  return text(counter)
end

local function parse(value)
  local epoch, sequence, inc, begun, ends, anew = match(value, '^(%d+) (%d+) (%S+) (%d+) (%S+) (%d)$')
  return { epoch = epoch, sequence = sequence, inc = inc, begun = begun, ends = tonumber(ends), anew = anew == '1' }
end

local known = {}
local function save(name)
  local h = known[name]
  call('HSET', K .. 'h', name, h.epoch .. ' ' .. h.sequence .. ' ' .. h.inc .. ' ' .. h.begun .. ' ' ..
    string.format('%.17g', h.ends) .. ' ' .. (h.anew and 1 or 0))
end

local function forget(inc)
  local told = call('HGETALL', K .. 'd:' .. inc)
  for i = 2, #told, 2 do call('DEL', K .. 'v:' .. inc .. ':' .. told[i], K .. 'g:' .. inc .. ':' .. told[i]) end
  call('DEL', K .. 'd:' .. inc, K .. 'w:' .. inc)
end

local function lapse(name)
  local h = known[name]
  forget(h.inc)
  call('HDEL', K .. 'h', name)
  known[name] = nil
  call('HSET', K .. 'l', name, h.epoch .. ' ' .. h.sequence .. ' ' .. text(unix))
  if call('HLEN', K .. 'l') > MOST_LAPSED then
    local flat, all = call('HGETALL', K .. 'l'), {}
    for i = 1, #flat, 2 do all[#all + 1] = { tonumber(match(flat[i + 1], '%d+$')), flat[i] } end
    table.sort(all, function(a, b) return a[1] < b[1] end)
    for i = 1, #all / 2 do call('HDEL', K .. 'l', all[i][2]) end
  end
end

-- who has expired is taken out before anything else, by writing it down: a clock that goes back brings nobody back
local flat = call('HGETALL', K .. 'h')
for i = 1, #flat, 2 do known[flat[i]] = parse(flat[i + 1]) end
local expired = {}
for name, h in pairs(known) do if h.ends <= now then expired[#expired + 1] = name end end
for _, name in ipairs(expired) do lapse(name) end

local function view()
  local names, incs = {}, {}
  for name, h in pairs(known) do
    names[#names + 1] = name
    incs[#incs + 1] = h.inc
  end
  return { call('GET', K .. 'n') or '0', names, incs }
end

local function drop(domain)
  local generation = call('HGET', K .. 'D', domain)
  if not generation then return end
  for _, h in pairs(known) do
    if call('HGET', K .. 'd:' .. h.inc, domain) == generation then
      call('HSET', K .. 'd:' .. h.inc, domain, 'lost')
      call('DEL', K .. 'v:' .. h.inc .. ':' .. generation, K .. 'g:' .. h.inc .. ':' .. generation)
    end
  end
  call('HDEL', K .. 'D', domain)
  call('HSET', K .. 'T', domain .. '.' .. generation, text(unix) .. ' 0')
end

local function dropUnused()
  local used = {}
  for _, h in pairs(known) do
    for _, domain in ipairs(call('HKEYS', K .. 'd:' .. h.inc)) do used[domain] = true end
  end
  for _, domain in ipairs(call('HKEYS', K .. 'D')) do if not used[domain] then drop(domain) end end
end

-- what an agent is to look at: where it may be asked for something, and whether some shards still have what they had
local function applied(h, from)
  local checks, told, current = {}, {}, {}
  local domains = call('HGETALL', K .. 'd:' .. h.inc)
  for i = 1, #domains, 2 do
    current[domains[i]] = domains[i + 1]
    if domains[i + 1] ~= 'lost' then told[#told + 1] = { domains[i], domains[i + 1] } end
  end
  -- a domain that was removed is asked about no more: an answer would not be taken, and the question never end
  local marks = {}
  local fields = call('HGETALL', K .. 'w:' .. h.inc)
  for i = 1, #fields, 2 do
    local domain, generation = match(fields[i], '^(.+)%.(%d+):%d+$')
    if current[domain] ~= generation then
      call('HDEL', K .. 'w:' .. h.inc, fields[i])
    elseif #marks < 2 * ${MOST_MARKS} then
      marks[#marks + 1] = fields[i]
      marks[#marks + 1] = fields[i + 1]
    end
  end
  if #told > 0 then
    table.sort(told, function(a, b) return a[1] < b[1] end)
    local first, last = 0, #told * SHARDS - 1
    if from ~= 'all' then
      first = (tonumber(from) * ${CHECKED}) % (#told * SHARDS)
      last = first + ${CHECKED} - 1
    end
    for i = math.floor(first / SHARDS), math.floor(last / SHARDS) do
      local begin = math.max(0, first - i * SHARDS)
      local ends = math.min(SHARDS - 1, last - i * SHARDS)
      local one = told[i + 1]
      local numbers = call('GETRANGE', K .. 'v:' .. h.inc .. ':' .. one[2], 4 * begin, 4 * ends + 3)
      checks[#checks + 1] = { one[1], one[2], begin, ends, numbers }
    end
  end
  return { 'applied', h.inc, view(), marks, checks }
end

local function superseded(name, epoch)
  local h = known[name]
  local last = h and h.epoch or match(call('HGET', K .. 'l', name) or '0', '^%d+')
  if tonumber(epoch) < tonumber(last) then return last end
end

local function renew(name)
  known[name].ends = now + lease
  save(name)
end

if op == 'open' then
  local name, epoch, sequence, begins, from = take(), take(), take(), take() == '1', take()
  local nonce = take()
  local later = superseded(name, epoch)
  if later then return { 'superseded', later } end
  local h = known[name]
  if h and h.epoch ~= epoch then h = nil end
  local done = h and h.sequence
  if not h and not known[name] then
    local e, s = match(call('HGET', K .. 'l', name) or '', '^(%d+) (%d+)')
    if e == epoch then done = s end
  end
  done = done or '0'
  local n = tonumber(sequence)
  if h then
    renew(name)
    if n <= tonumber(done) then return applied(h, from) end
  end
  if n <= tonumber(done) then return { 'anew' } end
  -- one that began and whose first report is not complete yet goes on with that one only
  local isOpen = h and tonumber(h.begun) > tonumber(done)
  if not begins and (not h or h.anew or isOpen or n ~= tonumber(done) + 1) then return { 'anew' } end
  local changed, added = {}, {}
  for i = 1, tonumber(take()) do changed[i], added[i] = take(), take() == '1' end
  local lost = {}
  if not begins then
    for i, domain in ipairs(changed) do
      lost[i] = call('HGET', K .. 'd:' .. h.inc, domain) == 'lost'
      if lost[i] and added[i] then return { 'anew' } end
    end
  end
  if not known[name] then
    local hosts = 0
    for _ in pairs(known) do hosts = hosts + 1 end
    if hosts >= MOST_HOSTS then return { 'full', 'hosts' } end
  end
  local function isRoom()
    local fresh = 0
    for i, domain in ipairs(changed) do
      if not lost[i] and call('HEXISTS', K .. 'D', domain) == 0 then fresh = fresh + 1 end
    end
    return fresh == 0 or call('HLEN', K .. 'D') + fresh <= MOST_DOMAINS
  end
  if not isRoom() then
    dropUnused()
    if not isRoom() then return { 'full', 'domains' } end
  end
  if begins and not (isOpen and h.begun == sequence) then
    if known[name] then forget(known[name].inc) end
    call('HDEL', K .. 'l', name)
    h = { epoch = epoch, sequence = done, inc = issue() .. '-' .. nonce, begun = sequence, anew = false }
    known[name] = h
    renew(name)
  end
  local answer = { 'apply', h.inc, text(n - tonumber(h.begun) + 1), view() }
  local function give(domain, generation)
    local numbers = call('GET', K .. 'v:' .. h.inc .. ':' .. generation) or ''
    answer[#answer + 1] = { domain, generation, numbers }
  end
  for i, domain in ipairs(changed) do
    if not lost[i] then
      local generation = call('HGET', K .. 'D', domain)
      if not generation then
        generation = issue()
        call('HSET', K .. 'D', domain, generation)
      end
      call('HSET', K .. 'd:' .. h.inc, domain, generation)
      give(domain, generation)
    end
  end
  -- domains of answers only: what it has told nothing of is not asked for
  for _ = 1, tonumber(take()) do
    local domain = take()
    local generation = call('HGET', K .. 'd:' .. h.inc, domain)
    if generation and generation ~= 'lost' then give(domain, generation) end
  end
  return answer
end

if op == 'commit' then
  local name, inc, sequence, from, worn = take(), take(), take(), take(), take() == '1'
  local h = known[name]
  if not h or h.inc ~= inc then return { 'anew' } end
  local number = tonumber(sequence) - tonumber(h.begun) + 1
  local isNew = tonumber(sequence) > tonumber(h.sequence)
  -- shards that it changed, a bit each
  for _ = 1, tonumber(take()) do
    local domain, generation, shards = take(), take(), take()
    if isNew and call('HGET', K .. 'd:' .. inc, domain) == generation then
      local key = K .. 'v:' .. inc .. ':' .. generation
      local numbers = call('GET', key) or ''
      local out, packed = {}, struct.pack('>I4', number)
      for i = 0, SHARDS - 1 do
        local old = string.sub(numbers, 4 * i + 1, 4 * i + 4)
        local isChanged = bit.band(string.byte(shards, math.floor(i / 8) + 1), 2 ^ (i % 8)) ~= 0
        out[i + 1] = isChanged and packed or (old ~= '' and old or '\\0\\0\\0\\0')
      end
      call('SET', key, table.concat(out))
    end
  end
  for _ = 1, tonumber(take()) do
    local domain, generation, guest, gone = take(), take(), take(), take() == '1'
    if isNew and call('HGET', K .. 'd:' .. inc, domain) == generation then
      call(gone and 'SREM' or 'SADD', K .. 'g:' .. inc .. ':' .. generation, guest)
    end
  end
  local isKnown = {}
  for _, other in pairs(known) do isKnown[other.inc] = true end
  for _ = 1, tonumber(take()) do
    local asked, place = take(), take()
    if isKnown[asked] then call('HINCRBY', K .. 'w:' .. asked, place, 1) end
  end
  if isNew then
    h.sequence = sequence
    h.anew = h.anew or worn
    save(name)
  end
  return applied(h, from)
end

if op == 'beat' then
  local name, epoch, sequence, from = take(), take(), take(), take()
  local later = superseded(name, epoch)
  if later then return { 'superseded', later } end
  local h = known[name]
  if not h or h.epoch ~= epoch then return { 'anew' } end
  renew(name)
  return (h.anew or tonumber(sequence) > tonumber(h.sequence)) and { 'anew' } or applied(h, from)
end

if op == 'unmark' then
  local inc = take()
  for _ = 1, tonumber(take()) do
    local place, version = take(), take()
    -- another question may have come since
    if call('HGET', K .. 'w:' .. inc, place) == version then call('HDEL', K .. 'w:' .. inc, place) end
  end
elseif op == 'spoil' then
  local name, inc = take(), take()
  if known[name] and known[name].inc == inc then
    known[name].anew = true
    save(name)
  end
elseif op == 'view' then
  return { call('HGET', K .. 'D', take()) or '', view() }
elseif op == 'hosts' then
  local out = {}
  for name, h in pairs(known) do
    local guests, told = 0, call('HGETALL', K .. 'd:' .. h.inc)
    for i = 2, #told, 2 do
      if told[i] ~= 'lost' then guests = guests + call('SCARD', K .. 'g:' .. h.inc .. ':' .. told[i]) end
    end
    out[#out + 1] = { name, h.epoch, string.format('%.17g', h.ends - now), guests }
  end
  return out
elseif op == 'removeHost' then
  local name = take()
  if known[name] then lapse(name) end
elseif op == 'removeDomain' then
  local domain = take()
  drop(domain)
  call('DEL', K .. 'H:' .. domain)
  call('SREM', K .. 'B', domain)
elseif op == 'empty' then
  local names = {}
  for name in pairs(known) do names[#names + 1] = name end
  for _, name in ipairs(names) do lapse(name) end
  dropUnused()
elseif op == 'erase' then
  -- a counter that is gone begins with the time
  if next(known) == nil and call('EXISTS', K .. 'D', K .. 'T') == 0 then
    call('DEL', K .. 'h', K .. 'l', K .. 'n', K .. 's', K .. 'B')
    return { 'erased' }
  end
elseif op == 'turn' then
  -- whoever comes first after the pause sweeps the next shards
  local pause, most = tonumber(take()), tonumber(take())
  local at, place = match(call('GET', K .. 's') or '0 0', '^(%d+) (%d+)$')
  if pause > 0 and math.abs(unix - tonumber(at)) < pause then return {} end
  dropUnused()
  local domains = call('HGETALL', K .. 'D')
  local all, out = #domains / 2 * SHARDS, {}
  local position = tonumber(place)
  if position >= all then position = 0 end
  for i = position, math.min(all, position + most) - 1 do
    local j = 2 * math.floor(i / SHARDS) + 1
    out[#out + 1] = domains[j] .. '.' .. domains[j + 1] .. ':' .. i % SHARDS
  end
  call('SET', K .. 's', text(unix) .. ' ' .. text(position + most))
  local removed, due = call('HGETALL', K .. 'T'), {}
  for i = 1, #removed, 2 do
    local since, next_time = match(removed[i + 1], '^(%d+) (%d+)$')
    if #due < 4 and (pause == 0 or tonumber(next_time) <= unix) then
      due[#due + 1] = { removed[i], unix - tonumber(since) > ${BURIED_MS} and 1 or 0 }
      call('HSET', K .. 'T', removed[i], since .. ' ' .. text(unix + 60000))
    end
  end
  return { view(), out, due }
elseif op == 'buried' then call('HDEL', K .. 'T', take())
end
return {}
`;
