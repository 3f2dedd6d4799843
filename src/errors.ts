/**
 * Every failure that Pagetide reports has a stable code, the HTTP status that the control API answers with, and a
 * hint that says what to do. Codes are part of the interface: they are only ever added, never renamed.
 */
export const ERROR_CODES = {
  // what the operator asked for
  PT_BAD_ARGUMENT: { status: 400, hint: 'See --help, or docs/api.md for the shape of a request.' },
  PT_BAD_CONFIG: { status: 400, hint: 'Correct the configuration file; docs/configuration.md lists every field.' },
  PT_GUEST_UNKNOWN: { status: 404, hint: '`pagetide guest list` shows the guests of an agent.' },
  PT_GUEST_EXISTS: { status: 409, hint: 'Choose another name, or remove the guest that has it.' },
  PT_GUEST_BUSY: { status: 409, hint: 'Wait for the migration to end, or cancel it.' },
  PT_GUEST_STATE: { status: 409, hint: '`pagetide guest show NAME` tells what the guest is doing.' },
  PT_NOT_CANCELLABLE: {
    status: 409,
    hint: 'The guest already belongs to the destination; the migration runs to its end.',
  },
  PT_MIGRATION_UNKNOWN: { status: 404, hint: 'The migration has ended or never began.' },
  PT_MODE_UNSUPPORTED: { status: 400, hint: 'Choose --mode auto; docs/migration.md says what each mode needs.' },
  PT_NOT_CONVERGING: {
    status: 409,
    hint: 'Raise --max-downtime or --bandwidth, choose --on-no-convergence post-copy or pause, or --mode hybrid.',
  },
  // evacuations
  PT_EVACUATING: { status: 409, hint: '`pagetide evacuate --follow` shows how far it is; Ctrl-C there stops it.' },
  PT_EVACUATION_UNKNOWN: {
    status: 404,
    hint: 'Nothing is lost: begin one, it goes on with the guests that are still there. `pagetide migrations` shows the others.',
  },
  PT_EVACUATION_INCOMPLETE: {
    status: 409,
    hint: 'Mend the reasons, and repeat the command: it goes on with what is still there.',
  },
  PT_NO_TARGET: { status: 409, hint: 'Give more targets, or make room at those.' },
  // this host
  PT_UNSUPPORTED_HOST: { status: 501, hint: 'Run `pagetide doctor` on that host.' },
  PT_NO_PERMISSION: { status: 403, hint: '`pagetide doctor` says which right is missing and how to get it.' },
  PT_PORT_IN_USE: { status: 409, hint: 'Give another --listen address, or stop what listens there.' },
  PT_SOCKET_IN_USE: { status: 409, hint: 'Another process listens on that socket.' },
  PT_STATE_IN_USE: { status: 409, hint: 'Another agent uses this --state folder; one agent, one folder.' },
  PT_STATE_VERSION: {
    status: 500,
    hint: 'A newer Pagetide wrote this --state folder; run that version, or a newer one.',
  },
  PT_NO_MEMORY: { status: 507, hint: 'Free memory on the destination, or choose another host.' },
  PT_NO_SPACE: { status: 507, hint: 'Free space where guest memory files are kept, or configure another folder.' },
  PT_NO_WORKER: { status: 503, hint: 'Raise faultWorkers in the configuration, or wait until a migration ends.' },
  PT_IO: { status: 500, hint: 'The cause names the file and the system error.' },
  PT_SYSCALL: { status: 500, hint: 'The message names the system call; `pagetide doctor` checks what it needs.' },
  PT_INTERNAL: { status: 500, hint: 'This is a defect of Pagetide; please report it with --verbose output.' },
  // guests and their VMMs
  PT_VMM_FAILED: { status: 502, hint: "The VMM's own log is in the guest's folder below --state." },
  PT_VMM_GONE: { status: 502, hint: "The VMM exited; its own log is in the guest's folder below --state." },
  PT_VMM_TIMEOUT: { status: 504, hint: 'The VMM did not answer in time; look at its log and its load.' },
  PT_VMM_PROTOCOL: { status: 502, hint: 'The VMM answered something unexpected; check its version.' },
  PT_VMM_REFUSED_STATE: { status: 502, hint: 'Use the same machine type, devices and VMM version on both hosts.' },
  PT_GUEST_UNSAFE: { status: 422, hint: 'docs/qemu.md lists the devices and memory set-ups that are safe to move.' },
  PT_MEMORY_PRESENT: { status: 422, hint: 'Start the destination without preallocated, locked or huge-page memory.' },
  PT_FOREIGN_PAGE: { status: 500, hint: "Something else wrote to the guest's memory; the guest is kept stopped." },
  PT_PAGE_MISMATCH: {
    status: 502,
    hint: 'It is asked for again and never used. If it goes on: look at the source host for failing memory.',
  },
  PT_PAGE_DAMAGED: {
    status: 500,
    hint: 'Look at the source host for failing memory, or a program that writes to memory files; keep both hosts as they are.',
  },
  PT_VERIFY_FAILED: {
    status: 500,
    hint: "Keep the guest's memory files as they are, and report it with both agents' logs.",
  },
  // hand-over of a userfaultfd, and memory files
  PT_HANDOVER_INVALID: { status: 400, hint: 'The VMM must send one JSON array of regions with one userfaultfd.' },
  PT_HANDOVER_TOO_LARGE: { status: 400, hint: 'The VMM must send one JSON array of regions with one userfaultfd.' },
  PT_MEMORY_FILE: { status: 422, hint: 'The memory file must hold every region of the guest, and must not change.' },
  PT_MANIFEST_INVALID: { status: 422, hint: 'Make the manifest anew with `pagetide manifest`; it costs one scan.' },
  // the shared-page cache
  PT_CACHE_IN_USE: { status: 409, hint: 'One agent, one cache file: configure another path, or stop that agent.' },
  PT_CACHE_FILE: {
    status: 422,
    hint: 'Remove the cache file, or configure another path; it only holds copies, and is made anew.',
  },
  PT_PAGE_UNHELD: {
    status: 503,
    hint: 'The guest waits for it, and it is asked for again: bring back the host that has it.',
  },
  PT_NO_CACHE: { status: 409, hint: 'Set cache.size in the configuration of the agent.' },
  // distribution
  PT_NOT_CONFIGURED: { status: 409, hint: 'The agent runs without it; docs/configuration.md lists every field.' },
  PT_PLAN_UNKNOWN: { status: 404, hint: '`pagetide plan list` shows those in force.' },
  // trust between hosts
  PT_FILE_EXISTS: { status: 409, hint: 'Choose another folder, or move the files there away.' },
  PT_BAD_CERTIFICATE: { status: 400, hint: 'Make it anew with `pagetide cluster add-host`; see docs/security.md.' },
  PT_PEER_UNTRUSTED: {
    status: 403,
    hint: 'Every agent needs a certificate that `pagetide cluster add-host` made from the same cluster; see docs/security.md.',
  },
  // domains
  PT_DOMAIN_UNKNOWN: { status: 404, hint: '`pagetide domain list` shows the domains of an agent; grant it there.' },
  PT_DOMAIN_EXISTS: { status: 409, hint: 'Choose another name, or remove the domain that has it.' },
  PT_DOMAIN_IN_USE: { status: 409, hint: 'Remove its guests first, or move them away.' },
  PT_DIRECTORY_EVICTS: {
    status: 409,
    hint: 'Set maxmemory-policy of every node to noeviction, or to one of volatile-…: no key here expires.',
  },
  PT_DOMAIN_ELSEWHERE: { status: 409, hint: 'Only the agent that made a domain grants and revokes it: ask that one.' },
  PT_DOMAIN_SECRET: {
    status: 409,
    hint: 'Two domains have the same name: remove one, and grant the other to both hosts.',
  },
  // between agents
  PT_PEER_UNREACHABLE: { status: 502, hint: 'Check the address and that the agent there is running.' },
  PT_PEER_FAILED: { status: 502, hint: 'The cause is the other agent’s own error.' },
  PT_PROTOCOL: { status: 400, hint: 'Both agents must speak the same protocol version; upgrade the older one.' },
  PT_UNAUTHORIZED: { status: 401, hint: 'Page streams open only to the agent that takes part in the migration.' },
  PT_SUPERSEDED: {
    status: 409,
    hint: 'Two agents have one name: give each its own. If it is one agent whose clock was set back: start it with a later epoch.',
  },
  PT_TOO_SOON: { status: 429, hint: 'Ask again after a second.' },
  PT_IN_DOUBT: { status: 503, hint: 'The guest stays paused until both hosts have talked; restore the connection.' },
  PT_CANCELLED: { status: 409, hint: 'The migration was cancelled; the guest goes on at the source.' },
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

/** An error as JSON: the control API's error body, and the CLI's with `--json`. */
export interface ErrorJson {
  code: ErrorCode;
  message: string;
  hint: string;
  cause?: string;
}

export interface ErrorOptions {
  /** What went wrong underneath. */
  cause?: unknown;
  /** Replaces the code's own hint. */
  hint?: string;
}

/** The one class of errors that Pagetide throws on purpose. */
export class PagetideError extends Error {
  override readonly name = 'PagetideError';
  readonly code: ErrorCode;
  readonly hint: string;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint ?? ERROR_CODES[code].hint;
  }

  /** The HTTP status that the control API answers with. */
  get status(): number {
    return ERROR_CODES[this.code].status;
  }

  toJSON(): ErrorJson {
    const cause = this.cause instanceof Error ? this.cause.message : undefined;
    return { code: this.code, message: this.message, hint: this.hint, ...(cause === undefined ? {} : { cause }) };
  }
}

/** Anything that was thrown, as a {@link PagetideError}; what was none becomes `PT_INTERNAL` (or `code`) with it as cause. */
export function asPagetideError(thrown: unknown, code: ErrorCode = 'PT_INTERNAL', message?: string): PagetideError {
  if (thrown instanceof PagetideError) return thrown;
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return new PagetideError(code, message === undefined ? text : `${message}: ${text}`, { cause: thrown });
}

/** Rebuilds an error that travelled as JSON between agents or threads. Unknown codes become `PT_PEER_FAILED`. */
export function errorFromJson(json: unknown): PagetideError {
  const body = (typeof json === 'object' && json !== null ? json : {}) as Partial<Record<keyof ErrorJson, unknown>>;
  const message = typeof body.message === 'string' ? body.message : 'the other side reported an error';
  const known = typeof body.code === 'string' && Object.hasOwn(ERROR_CODES, body.code);
  const options: ErrorOptions = {};
  if (typeof body.hint === 'string') options.hint = body.hint;
  if (typeof body.cause === 'string') options.cause = new Error(body.cause);
  return new PagetideError(known ? (body.code as ErrorCode) : 'PT_PEER_FAILED', message, options);
}
