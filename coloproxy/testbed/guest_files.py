# SPDX-License-Identifier: Apache-2.0
"""What runs inside the guest: its init script and the programs behind its web server.

The guest is Linux with busybox, nothing else.  Addresses are fixed, for each pair has network namespaces of its own.
"""

from __future__ import annotations

from .addition import START_FILE

GUEST_MAC = "52:54:00:c0:10:01"
GUEST_IPV4 = "10.99.0.2"
GUEST_IPV6 = "fd99::2"
CLIENT_IPV4 = "10.99.0.1"
CLIENT_IPV6 = "fd99::1"
HTTP_PORT = 80
UPLOAD_PORT = 8080
UDP_LOG_PORT = 5514
"""Where on the client the guest's UDP datagrams go (cgi-bin/datagram)."""

READY_LINE = "coloproxy guest: service is up"
"""What the guest writes to its console once the web server runs."""

LAST_FILE = "complete"
"""The last file of the initial file system; if it is there, everything is."""

HOST_NAME_KEY = "opt/org.coloproxy/host"
"""The fw_cfg entry by which a QEMU tells its guest which of the two it is.

A guest under COLO is one machine that runs twice; its host name is part of its state and equal on both sides.  What
QEMU serves through fw_cfg is not part of the migrated state, so it is the one honest way for the guest to see a
difference: exactly what COLO calls a divergence.
"""

INIT = f"""#!/bin/busybox sh
# Process 1 of the guest.  Runs under TCG, so it does as little as it can.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
hostname cologuest
[ -e /{LAST_FILE} ] || echo "init: the initial file system is incomplete; not enough RAM?"

while read -r module; do
    insmod "/modules/$module" || echo "init: insmod $module failed"
done < /modules/order

ip link set lo up
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra
ip addr add {GUEST_IPV4}/24 dev eth0
ip addr add {GUEST_IPV6}/64 dev eth0
ip link set eth0 up

syslogd -n -R {CLIENT_IPV4}:{UDP_LOG_PORT} &
httpd -p '[::]:{HTTP_PORT}' -h /www
nc -ll -p {UPLOAD_PORT} -e /upload &
[ ! -e /{START_FILE} ] || /{START_FILE}

# The kernel draws the secret behind its TCP timestamps at the first TCP connection.  Were that after COLO began,
# the two VMs would draw different ones, and the client would drop the survivor's segments (PAWS, RFC 7323).
wget -q -O /dev/null http://127.0.0.1/hello.txt

echo "{READY_LINE}"
while :; do sleep 3600; done
"""

UPLOAD = """#!/bin/sh
# Serves one HTTP request: takes a body of Content-Length bytes and says how many there were, and their digest.
# Not behind the web server, which hands a body on by the kilobyte, with two context switches each.  dd counts in
# blocks; head and wc would do it byte by byte.
length=0
while IFS= read -r line; do
    line=${line%?}
    [ -n "$line" ] || break
    case $line in [Cc]ontent-[Ll]ength:*) length=$((${line#*:})) ;; esac
done
records=/tmp/records.$$
digest=$(dd bs=65536 iflag=fullblock,count_bytes count=$length 2> $records | sha256sum)
IFS='+ ' read -r whole part rest < $records
rm -f $records
count=$((whole * 65536))
[ "$part" = 0 ] || count=$((count + length % 65536))
printf 'HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\nConnection: close\\r\\n\\r\\n'
printf 'bytes: %s\\nsha256: %s\\n' $count "${digest%% *}"
"""

HELLO = b"hello from the protected guest\n"

_HEADER = "printf 'Content-Type: text/plain\\r\\n\\r\\n'"

# Each answer is put together first and written at once: how the web server cuts it into segments is up to the
# guest's scheduler all the same.
CGI: dict[str, str] = {
    # Depends on the query alone: equal on both VMs.
    "dynamic": f"""#!/bin/sh
digest=$(printf %s "$QUERY_STRING" | sha256sum)
{_HEADER}
printf 'query: %s\\nsha256: %s\\n' "$QUERY_STRING" "${{digest%% *}}"
""",
    # Differs on the two VMs, always, and only in known places.  /dev/urandom alone wouldn't do: a checkpoint makes
    # the two generators equal, and they stay so until the kernel reseeds.  So the clock, in nanoseconds, and the
    # name of the host go into the digest too.
    "diverge": f"""#!/bin/sh
read -r host < /sys/firmware/qemu_fw_cfg/by_name/{HOST_NAME_KEY}/raw
token=$({{ head -c 32 /dev/urandom; head -n 3 /proc/timer_list; echo "$host"; }} | sha256sum)
{_HEADER}
printf 'this answer differs on purpose\\nhost: %s\\ntoken: %s\\nthe end\\n' "$host" "${{token%% *}}"
""",
    # One UDP datagram to the client; its text depends on the query alone (besides syslog's time in seconds).
    "datagram": f"""#!/bin/sh
logger -t guest "$QUERY_STRING"
{_HEADER}
printf 'sent\\n'
""",
}
