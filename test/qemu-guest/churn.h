/* Memory that the guest takes and gives back all the time, and checks while it has it. */
#ifndef PAGETIDE_CHURN_H
#define PAGETIDE_CHURN_H

#include <stdint.h>

#include "guest.h"

/* Items of the check from here on are pages of memory that comes and goes. */
#define CHURN_ITEMS ((uint64_t)2 << 32)

/* Starts taking and giving back as many MiB as pagetide.churn= says; 0, or no such word: none. */
void start_churn(void);
/* Pages that were taken, filled, found right and given back. */
uint64_t churned(void);
void verify_churn(struct verdict*);

#endif
