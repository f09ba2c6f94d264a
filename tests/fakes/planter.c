/* Preloaded into a QEMU that its guest has taken over: a thread that plants what it can, all the time.

PLACES are paths, separated by colons. Beside each, or in it where it is a directory, it tries to
make a link to VICTIM, a directory, a FIFO and a file; it tries to rename each and to remove it.
What succeeds is a line of SHARE/planted: its way and place. SHARE/rounds gets a byte each turn. */

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int planted;

static void tell(const char *way, const char *place, int failed)
{
	if (!failed)
		dprintf(planted, "%s %s\n", way, place);
}

static void plant(const char *place, int number)
{
	char copy[PATH_MAX], beside[PATH_MAX + 64];
	const char *directory = place;
	struct stat seen;
	int file;

	if (stat(place, &seen) != 0 || !S_ISDIR(seen.st_mode)) {
		snprintf(copy, sizeof copy, "%s", place);
		directory = dirname(copy);
	}
	snprintf(beside, sizeof beside, "%s/link%d", directory, number);
	tell("link", place, symlink(getenv("VICTIM"), beside));
	snprintf(beside, sizeof beside, "%s/directory%d", directory, number);
	tell("directory", place, mkdir(beside, 0777));
	snprintf(beside, sizeof beside, "%s/fifo%d", directory, number);
	tell("fifo", place, mkfifo(beside, 0666));
	snprintf(beside, sizeof beside, "%s/file%d", directory, number);
	file = open(beside, O_CREAT | O_EXCL | O_WRONLY, 0666);
	tell("file", place, file < 0);
	if (file >= 0)
		close(file);
	snprintf(beside, sizeof beside, "%s.away", place);
	tell("rename", place, rename(place, beside));
	tell("remove", place, unlink(place));
}

static void *go_on(void *unused)
{
	char path[PATH_MAX], *places, *next, *place;
	int rounds;

	(void)unused;
	snprintf(path, sizeof path, "%s/planted", getenv("SHARE"));
	planted = open(path, O_CREAT | O_WRONLY | O_APPEND, 0666);
	snprintf(path, sizeof path, "%s/rounds", getenv("SHARE"));
	rounds = open(path, O_CREAT | O_WRONLY | O_APPEND, 0666);
	for (int number = 0;; number++) {
		places = next = strdup(getenv("PLACES"));
		while ((place = strsep(&next, ":")))
			plant(place, number % 4);
		free(places);
		dprintf(rounds, ".");
		usleep(100000);
	}
	return NULL;
}

__attribute__((constructor)) static void begin(void)
{
	pthread_t thread;

	if (getenv("PLACES"))
		pthread_create(&thread, NULL, go_on, NULL);
}
