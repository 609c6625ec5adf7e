/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A fuzz target without a fuzzer: each file of its folder (the argument, or
 * tests/fuzz/corpus/NAME for tests/fuzz/fuzz-NAME) is an input, and so are
 * ROUNDS damaged versions of each, which FUZZ_SEED varies.
 */

#include <config.h>

#include <dirent.h>
#include <sys/resource.h>

#include "tests/fuzz/fuzz.h"

#ifndef CORPUS
#define CORPUS "tests/fuzz/corpus"
#endif

#define INPUT_BYTES (1 << 18)
#define SECONDS 10              /* for one input */
#define MEMORY (UINT64_C (4) << 30)

static unsigned damages = 40;   /* of each file */

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static void
damage (uint8_t *data, size_t size, uint64_t *seed)
{
  static const uint8_t favourites[] = { 0, 1, 0x7f, 0x80, 0xff, 0x10 };

  for (unsigned i = 1 + next_random (seed) % 6; size > 0 && i > 0; --i) {
    /* Headers and tables are at the beginning of things. */
    const size_t at = next_random (seed) % 2
      ? next_random (seed) % size : next_random (seed) % (size / 16 + 1);

    data[at] = next_random (seed) % 2
      ? favourites[next_random (seed) % sizeof favourites]
      : next_random (seed);
  }
}

static void
run_file (const char *path)
{
  CLEANUP_CLOSE int fd = open (path, O_RDONLY);
  CLEANUP_FREE uint8_t *data = malloc (INPUT_BYTES), *copy = NULL;
  const char *given = getenv ("FUZZ_SEED");
  uint64_t seed = 88172645463325252 + (given ? strtoull (given, NULL, 10) : 0);
  ssize_t size;

  WANT (fd >= 0 && data && (size = read (fd, data, INPUT_BYTES)) >= 0);
  for (unsigned i = 0; i <= damages; ++i) {
    free (copy);
    copy = malloc (size + 1);   /* so that reads behind its end are seen */
    WANT (copy);
    memcpy (copy, data, size);
    if (i > 0)
      damage (copy, size, &seed);
    alarm (SECONDS);
    LLVMFuzzerTestOneInput (copy, size);
  }
  alarm (0);
}

int
main (int argc, char **argv)
{
  const struct rlimit memory = { .rlim_cur = MEMORY, .rlim_max = MEMORY };
  const char *name = strrchr (argv[0], '-');
  CLEANUP_FREE char *folder = NULL, *real = NULL;
  unsigned nr = 0;
  DIR *dir;

  WANT (name);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
  WANT (setrlimit (RLIMIT_AS, &memory) == 0);
#endif
  if (getenv ("ROUNDS"))
    damages = atoi (getenv ("ROUNDS"));
  WANT (asprintf (&folder, "%s/%s", CORPUS, name + 1) != -1);
  real = realpath (argc > 1 ? argv[1] : folder, NULL);
  WANT (real && (dir = opendir (real)));
  for (struct dirent *e; (e = readdir (dir)) != NULL;) {
    CLEANUP_FREE char *path = NULL;

    if (e->d_name[0] == '.')
      continue;
    WANT (asprintf (&path, "%s/%s", real, e->d_name) != -1);
    fprintf (stderr, "# %s\n", e->d_name);
    run_file (path);
    printf ("ok %u - %s\n", ++nr, e->d_name);
  }
  closedir (dir);
  printf ("1..%u\n", nr);
  return 0;
}
