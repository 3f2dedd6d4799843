/*
 * PostgreSQL, with the transactions of pgbench (TPC-B): an account, a teller and a branch get the same sum, and the
 * history a row.
 *
 * Operation N of worker W is one transaction over the wire protocol (version 3, simple queries), on an account of the
 * worker's own and on tellers and branches that all share; it reads the account's balance in between, which must be
 * right. A check reads all the worker's accounts and its whole history, and has the server compare the sums over all
 * accounts, tellers, branches, and the history in one statement. The cluster has data checksums: the server looks at
 * its own pages, too.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "load.h"

enum { KEYS = 1000, TELLERS = 10, BRANCHES = 2, FIELDS = 8, QUERY = 1024, RETRY_MS = 50 };

static const char* const command[] = {"/usr/bin/postgres", "-D", "/var/postgres", NULL};

/* What one query brought: rows go to `row` as they come. */
struct rows {
  bool (*row)(struct worker*, char* const field[], int fields, void* context);
  void* context;
};

/* The fields of a DataRow, each ended by a zero, in place: the length before the next field makes room for it. */
static int split(char* data, uint32_t length, char* field[]) {
  uint16_t count;
  if (length < 2) return -1;
  memcpy(&count, data, 2);
  count = ntohs(count);
  uint32_t at = 2;
  for (int i = 0; i < count; i++) {
    uint32_t size;
    if (i >= FIELDS || at + 4 > length) return -1;
    memcpy(&size, data + at, 4);
    size = ntohl(size);
    data[at] = 0;
    at += 4;
    if (size > length - at) return -1; /* NULL, too: there is none in these tables */
    field[i] = data + at;
    at += size;
  }
  data[length] = 0;
  return count;
}

/* Takes messages until the server is ready for the next query. */
static bool take(struct worker* w, const struct rows* rows) {
  bool good = true;
  for (;;) {
    char type, *field[FIELDS];
    uint32_t length;
    if (!receive(w, &type, 1) || !receive(w, &length, 4)) return false;
    length = ntohl(length) - 4;
    if (length + 1 >= MAX_VALUE) return complain(w, "a message `%c` of %u bytes", type, length);
    if (!receive(w, w->answer, length)) return false;
    w->answer[length] = 0;
    if (type == 'Z') return good && (w->answer[0] == 'I' || complain(w, "left in a transaction: %c", w->answer[0]));
    if (type == 'E') {
      for (uint32_t i = 0; i < length; i++)
        if (w->answer[i] == 0) w->answer[i] = ' ';
      good = complain(w, "%s", w->answer);
    } else if (type == 'R' && memcmp(w->answer, "\0\0\0\0", 4) != 0) {
      return complain(w, "the server wants a password");
    } else if (type == 'D' && good) {
      int fields = split(w->answer, length, field);
      good = (fields >= 0 && rows != NULL) || complain(w, "a row that doesn't belong here");
      if (good) good = rows->row(w, field, fields, rows->context);
    }
  }
}

static bool query(struct worker* w, const char* text, const struct rows* rows) {
  char out[QUERY + 8];
  uint32_t size = strlen(text) + 5, order = htonl(size);
  out[0] = 'Q';
  memcpy(out + 1, &order, 4);
  memcpy(out + 5, text, size - 4);
  return send_all(w, out, size + 1) && take(w, rows);
}

/* A server that listens may still be starting; then it says so, as an error, and hangs up. Its log tells of any other.
 */
static bool open_it(struct worker* w) {
  static const char parameters[] = "\0\3\0\0user\0postgres\0database\0template1\0";
  char out[4 + sizeof parameters], type;
  uint32_t order = htonl(sizeof out);
  memcpy(out, &order, 4);
  memcpy(out + 4, parameters, sizeof parameters);
  for (;;) {
    if (!connect_unix(w, "/tmp/.s.PGSQL.5432") || !send_all(w, out, sizeof out)) return false;
    if (recv(w->connection.fd, &type, 1, MSG_PEEK) == 1 && type != 'E') return take(w, NULL);
    nap(RETRY_MS);
  }
}

static bool fill(struct worker* w, bool first) {
  char text[QUERY];
  if (!first) return true;
  snprintf(text, sizeof text,
           "CREATE TABLE accounts (aid int PRIMARY KEY, abalance bigint NOT NULL, filler char(84));"
           "CREATE TABLE tellers (tid int PRIMARY KEY, tbalance bigint NOT NULL, filler char(84));"
           "CREATE TABLE branches (bid int PRIMARY KEY, bbalance bigint NOT NULL, filler char(88));"
           "CREATE TABLE history (w int, n bigint, aid int, tid int, bid int, delta int, PRIMARY KEY (w, n));"
           "INSERT INTO accounts SELECT i, 0, '' FROM generate_series(0, %d) i;"
           "INSERT INTO tellers SELECT i, 0, '' FROM generate_series(0, %d) i;"
           "INSERT INTO branches SELECT i, 0, '' FROM generate_series(0, %d) i;",
           WORKERS * KEYS - 1, TELLERS - 1, BRANCHES - 1);
  return query(w, text, NULL);
}

static int delta_of(const struct worker* w, uint64_t n) {
  return (int)(chosen(w, n, 2) % 10001) - 5000;
}
static int teller_of(const struct worker* w, uint64_t n) {
  return chosen(w, n, 3) % TELLERS;
}
static int branch_of(const struct worker* w, uint64_t n) {
  return chosen(w, n, 4) % BRANCHES;
}

static bool is_balance(struct worker* w, char* const field[], int fields, void* context) {
  int64_t expected = *(int64_t*)context;
  if (fields == 1 && strtoll(field[0], NULL, 10) == expected) return true;
  return complain(w, "a balance of %s instead of %lld", field[0], (long long)expected);
}

static bool operate(struct worker* w, uint64_t n) {
  char text[QUERY];
  uint64_t key = written_key(w, n), aid = item_of(w, key);
  int delta = delta_of(w, n), tid = teller_of(w, n), bid = branch_of(w, n);
  int64_t balance = w->now[key] + delta;
  snprintf(text, sizeof text,
           "BEGIN;"
           "UPDATE accounts SET abalance = abalance + (%d) WHERE aid = %llu;"
           "SELECT abalance FROM accounts WHERE aid = %llu;"
           "UPDATE tellers SET tbalance = tbalance + (%d) WHERE tid = %d;"
           "UPDATE branches SET bbalance = bbalance + (%d) WHERE bid = %d;"
           "INSERT INTO history VALUES (%d, %llu, %llu, %d, %d, %d);"
           "END;",
           delta, (unsigned long long)aid, (unsigned long long)aid, delta, tid, delta, bid, w->index,
           (unsigned long long)n, (unsigned long long)aid, tid, bid, delta);
  struct rows rows = {is_balance, &balance};
  return query(w, text, &rows);
}

static int64_t written(const struct worker* w, uint64_t n, int64_t before) {
  return before + delta_of(w, n);
}

/* How far a check has come. */
struct progress {
  struct verdict* verdict;
  uint64_t next;
};

/* Rows in order: what is missing, or there twice, is out of place. */
static bool is_account(struct worker* w, char* const field[], int fields, void* context) {
  struct progress* progress = context;
  uint64_t key = progress->next++;
  if (fields != 2 || key >= KEYS || strtoull(field[0], NULL, 10) != item_of(w, key))
    return complain(w, "account %s instead of %llu", field[0], (unsigned long long)item_of(w, key));
  if (strtoll(field[1], NULL, 10) == w->now[key]) return true;
  complain(w, "account %s has %s instead of %lld", field[0], field[1], (long long)w->now[key]);
  add_bad(progress->verdict, item_of(w, key));
  return true;
}

static bool is_history(struct worker* w, char* const field[], int fields, void* context) {
  struct progress* progress = context;
  uint64_t n = ++progress->next;
  long long expected[] = {n, item_of(w, written_key(w, n)), teller_of(w, n), branch_of(w, n), delta_of(w, n)};
  for (int i = 0; i < 5; i++)
    if (fields != 5 || strtoll(field[i], NULL, 10) != expected[i])
      return complain(w, "row %llu of the history is wrong in field %d: %s", (unsigned long long)n, i, field[i]);
  return true;
}

static bool is_true(struct worker* w, char* const field[], int fields, void* context) {
  (void)context;
  return (fields == 1 && strcmp(field[0], "t") == 0) || complain(w, "the sums differ");
}

static bool check(struct worker* w, struct verdict* verdict) {
  char text[QUERY];
  struct progress accounts = {verdict, 0}, history = {verdict, 0};
  snprintf(text, sizeof text, "SELECT aid, abalance FROM accounts WHERE aid BETWEEN %llu AND %llu ORDER BY aid",
           (unsigned long long)item_of(w, 0), (unsigned long long)item_of(w, KEYS - 1));
  struct rows rows = {is_account, &accounts};
  if (!query(w, text, &rows)) return false;
  if (accounts.next != KEYS) return complain(w, "%llu accounts", (unsigned long long)accounts.next);
  snprintf(text, sizeof text, "SELECT n, aid, tid, bid, delta FROM history WHERE w = %d ORDER BY n", w->index);
  rows = (struct rows){is_history, &history};
  if (!query(w, text, &rows)) return false;
  if (history.next != w->operations) return complain(w, "%llu rows in the history", (unsigned long long)history.next);
  rows = (struct rows){is_true, NULL};
  /* one statement sees one moment, whatever the others are doing */
  return query(w,
               "SELECT a = t AND a = b AND a = h FROM (SELECT sum(abalance) a FROM accounts) x,"
               " (SELECT sum(tbalance) t FROM tellers) y, (SELECT sum(bbalance) b FROM branches) z,"
               " (SELECT coalesce(sum(delta), 0) h FROM history) u",
               &rows);
}

const struct load postgres_load = {
    .name = "postgres",
    .server = command,
    .user = SERVER_USER,
    .rate = 16,
    .keys = KEYS,
    .connect = open_it,
    .fill = fill,
    .operate = operate,
    .written = written,
    .check = check,
};
