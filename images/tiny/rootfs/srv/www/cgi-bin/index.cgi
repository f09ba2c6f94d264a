#!/usr/bin/busybox sh
# Answers every request for / with who and where this guest is.
. /usr/lib/tiny/lib.sh
printf 'Content-Type: text/plain; charset=utf-8\r\n\r\n'
echo "Virtlet tiny guest"
echo "hostname: $(hostname)"
addresses | sed 's/^/address: /'
echo "uptime: $(cut -d ' ' -f 1 /proc/uptime) s"
