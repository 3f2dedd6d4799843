/**
 * `npm run chaos -- [--runs 100] [--seed N] [--memory 64M] [--cache 16M [--liar]] [--modes] [--json]`: migrates a loaded guest to and fro between two real
 * agents, kills agents (-9) at random moments, restarts them, and checks after each run that nothing was lost, doubled or
 * left over. With --cache the guest is of a domain, and each agent has a shared-page cache of that size: smaller than the guest,
 * so that pages are evicted all the time; it is opened again after each kill. With --liar a third host has the guest's first pages, and
 * sends one of 300 with a bit changed. With --modes each run is of a mode of its own, pre-copy with each choice of what becomes of it where it does not converge, and
 * some are cancelled at a random moment. Ends with exit code 1 at the first run that does not hold; its seed begins the same run again.
 */
import { parseArgs } from 'node:util';
import { asPagetideError, PagetideError } from '../src/errors.ts';
import { parseSize } from '../src/agent/units.ts';
import { calmRun, chaosRun, planOf, type RunResult } from '../test/support/chaos.ts';
import { chaosCluster } from '../test/support/chaos-cluster.ts';

const USAGE = 'npm run chaos -- [--runs N] [--seed N] [--memory SIZE] [--cache SIZE [--liar]] [--modes] [--json]';

function bad(message: string): PagetideError {
  return new PagetideError('PT_BAD_ARGUMENT', message, { hint: USAGE });
}

function parse(args: string[]): {
  runs: number;
  seed: number;
  memory: number;
  cache: number;
  liar: boolean;
  modes: boolean;
  json: boolean;
} {
  let values: {
    runs: string;
    seed?: string;
    memory: string;
    cache: string;
    liar: boolean;
    modes: boolean;
    json: boolean;
  };
  try {
    ({ values } = parseArgs({
      args,
      options: {
        runs: { type: 'string', default: '100' },
        seed: { type: 'string' },
        memory: { type: 'string', default: '64M' },
        cache: { type: 'string', default: '0' },
        liar: { type: 'boolean', default: false },
        modes: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
      },
    }));
  } catch (cause) {
    throw bad(cause instanceof Error ? cause.message : String(cause));
  }
  const whole = (text: string, name: string, least: number): number => {
    if (!/^\d{1,9}$/.test(text) || Number(text) < least) throw bad(`--${name}: a whole number, ${least} at least`);
    return Number(text);
  };
  const memory = parseSize(values.memory);
  if (memory === undefined) throw bad(`--memory ${values.memory}: bytes, or with K, M, G`);
  const cache = parseSize(values.cache);
  if (cache === undefined) throw bad(`--cache ${values.cache}: bytes, or with K, M, G`);
  if (values.liar && cache === 0) throw bad('--liar needs a --cache');
  const seed = values.seed === undefined ? Math.floor(Math.random() * 1e9) : whole(values.seed, 'seed', 0);
  const { liar, modes, json } = values;
  return { runs: whole(values.runs, 'runs', 1), seed, memory, cache, liar, modes, json };
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

/** Classes of all reports together. */
function framesOf(results: readonly RunResult[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const { frames } of results)
    for (const [name, count] of Object.entries({ ...frames })) sum[name] = (sum[name] ?? 0) + count;
  return sum;
}

async function main(): Promise<void> {
  const { runs, seed, memory, cache, liar, modes, json } = parse(process.argv.slice(2));
  const teardowns: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    for (const step of teardowns.splice(0).reverse()) await step();
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      void close().finally(() => process.exit(1));
    });
  }
  const results: RunResult[] = [];
  const began = performance.now();
  let failure: string | undefined;
  let wrong = (): number => 0;
  try {
    const made = await chaosCluster({ teardown: (fn) => teardowns.push(fn) }, { memory, cache, liar, seed });
    const { cluster, guest } = made;
    wrong = () => made.liar?.wrong ?? 0;
    const calmMs = await calmRun(cluster, guest);
    console.error(`seed ${seed}, ${runs} runs; undisturbed, a migration takes ${calmMs.toFixed(0)} ms`);
    for (let run = 0; run < runs; run++) {
      const plan = planOf(seed + run, calmMs, modes);
      try {
        const result = await chaosRun(cluster, guest, plan);
        results.push(result);
        const text = `${String(run + 1).padStart(4)}  seed ${result.seed}  ${result.mode}: ${result.what.join('; then ')}`;
        console.error(`${text} -> ${result.outcome}, settled in ${result.settleMs.toFixed(0)} ms`);
      } catch (error) {
        failure = `run ${run + 1}, seed ${plan.seed}: ${JSON.stringify(plan)}\n${String(error)}`;
        const logs = cluster.agents.flatMap((agent) => [`--- ${agent.name}`, ...agent.log().slice(-60)]);
        console.error(`${failure}\n${logs.join('\n')}`);
        break;
      }
    }
  } finally {
    await close();
  }
  const settle = results.map(({ settleMs }) => settleMs);
  const summary = {
    runs: results.length,
    wanted: runs,
    moved: results.filter(({ outcome }) => outcome === 'moved').length,
    rolledBack: results.filter(({ outcome }) => outcome === 'rolled back').length,
    settleMs: { median: Math.round(median(settle)), max: Math.round(Math.max(0, ...settle)) },
    /** Of the migrations whose reports were not lost with an agent. */
    frames: framesOf(results),
    wrongPagesSent: wrong(),
    seconds: Math.round((performance.now() - began) / 1000),
  };
  if (failure !== undefined) process.exitCode = 1;
  if (json) {
    console.log(
      JSON.stringify({
        chaos: summary,
        seed,
        memory,
        cache,
        liar,
        modes,
        results,
        ...(failure === undefined ? {} : { failure }),
      }),
    );
    return;
  }
  console.log(
    `${summary.runs} of ${runs} runs held: ${summary.moved} moved, ${summary.rolledBack} rolled back; settled in ` +
      `${summary.settleMs.median} ms (median), ${summary.settleMs.max} ms at most; frames ${JSON.stringify(summary.frames)}; ${summary.wrongPagesSent} wrong pages sent; ${summary.seconds} s in all`,
  );
}

main().catch((thrown: unknown) => {
  const error = asPagetideError(thrown);
  console.error(`chaos: ${error.message} [${error.code}]\n  ${error.hint}`);
  process.exitCode = 1;
});
