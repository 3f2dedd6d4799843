/**
 * Hints in Redis, in the registry's slot. They are what operators said, and nobody tells them again: a fail-over to a replica that lagged may
 * lose the last ones.
 *
 *   H:<domain>  hash    subject -> "end order characters hint": JSON without the time
 *   B           set     domains that have hints
 *   o           string  counter of the order in which they were set
 *   c           string  the latest time at which any was looked at: a clock that goes back is taken to stand still
 */
import { PagetideError } from '../../errors.ts';
import { checkHint, checkSubject, HINTS_LIMIT, HINTS_TEXT_LIMIT, type Hint, type HintSubject } from '../hint.ts';
import { checkName } from '../names.ts';
import { script, type Argument, type Connection } from './connection.ts';
import { MOST_DOMAINS } from './lua-hosts.ts';

const HINTS = script(`
local K, op, domain = KEYS[1], ARGV[1], ARGV[3]
local call, match = redis.call, string.match
local time = call('TIME')
local now = tonumber(ARGV[2]) or tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local latest = math.max(tonumber(call('GET', K .. 'c')) or now, now)
call('SET', K .. 'c', string.format('%.17g', latest))
local key = K .. 'H:' .. domain
local flat, list, known, sum = call('HGETALL', key), {}, {}, 0
for i = 1, #flat, 2 do
  local ends, order, size, hint = match(flat[i + 1], '^(%S+) (%d+) (%d+) (.*)$')
  local left = tonumber(ends) - latest
  if left <= 0 then call('HDEL', key, flat[i])
  else
    list[#list + 1] = { order, string.format('%.17g', left), hint }
    known[flat[i]] = tonumber(size)
    sum = sum + tonumber(size)
  end
end
local done = 0
if op == 'list' then done = list
elseif op == 'withdraw' then done = call('HDEL', key, ARGV[4])
else
  local subject, left, size, hint = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
  if #list == 0 and call('SCARD', K .. 'B') >= ${MOST_DOMAINS} then return 'domains' end
  if #list - (known[subject] and 1 or 0) >= ${HINTS_LIMIT} then return 'hints' end
  if sum - (known[subject] or 0) + size > ${HINTS_TEXT_LIMIT} then return 'hints' end
  local order = string.format('%.0f', call('INCR', K .. 'o'))
  call('HSET', key, subject, string.format('%.17g', latest + left) .. ' ' .. order .. ' ' .. size .. ' ' .. hint)
end
call(call('EXISTS', key) == 1 and 'SADD' or 'SREM', K .. 'B', domain)
return done
`);

export class RedisHints {
  readonly #connection: Connection;
  readonly #key: string;
  readonly #clock: (() => number) | undefined;

  /** @param key of the registry */
  constructor(connection: Connection, key: string, clock: (() => number) | undefined) {
    this.#connection = connection;
    this.#key = key;
    this.#clock = clock;
  }

  /** Those in force, the one set last at the end. */
  async list(domain: string): Promise<Hint[]> {
    checkName(domain, 'domain');
    const found = (await this.#run('list', domain)) as [Buffer, Buffer, Buffer][];
    return found
      .map(([order, left, hint]): [number, Hint] => [
        Number(order.toString()),
        { ...(JSON.parse(hint.toString()) as Hint), leftMs: Number(left.toString()) },
      ])
      .sort(([a], [b]) => a - b)
      .map(([, hint]) => hint);
  }

  /** @throws PagetideError `PT_BAD_ARGUMENT` */
  async set(domain: string, hint: Hint): Promise<void> {
    checkName(domain, 'domain');
    checkHint(hint);
    const { kind, leftMs } = hint;
    const kept = kind === 'evacuate' ? { kind, host: hint.host } : { kind, guest: hint.guest, hosts: hint.hosts };
    const names = kind === 'evacuate' ? [hint.host] : [hint.guest, ...hint.hosts];
    const answer = await this.#run('set', domain, keyOf(hint), leftMs, names.join('').length, JSON.stringify(kept));
    if (answer instanceof Buffer)
      throw new PagetideError('PT_BAD_ARGUMENT', `too many ${answer.toString()}; withdraw some hints`);
  }

  /** Whether there was one in force. */
  async withdraw(domain: string, subject: HintSubject): Promise<boolean> {
    checkName(domain, 'domain');
    checkSubject(subject);
    return (await this.#run('withdraw', domain, keyOf(subject))) === 1;
  }

  #run(op: string, domain: string, ...args: Argument[]): Promise<unknown> {
    const now = this.#clock === undefined ? '' : this.#clock();
    return this.#connection.run(HINTS, this.#key, [op, now, domain, ...args]);
  }
}

function keyOf(subject: HintSubject): string {
  return subject.kind === 'evacuate' ? `evacuate ${subject.host}` : `affinity ${subject.guest}`;
}
