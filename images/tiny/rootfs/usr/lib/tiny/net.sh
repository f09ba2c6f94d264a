# Network helpers for the boot, for udhcpc's script and for hot-plugged interfaces.
. /usr/lib/tiny/lib.sh

# add_route INTERFACE DESTINATION GATEWAY [METRIC]. A gateway of 0.0.0.0, :: or none makes a
# route without one; no interface, the one that reaches the gateway. onlink, because a pod's
# gateway may lie outside its subnet (Calico).
add_route() {
	local interface=$1 dest=$2 gateway=$3 metric=$4 family=-4
	case $dest$gateway in *:*) family=-6 ;; esac
	case $dest in 0.0.0.0/0 | ::/0 | 0.0.0.0/0.0.0.0) dest=default ;; esac
	case $gateway in 0.0.0.0 | ::) gateway= ;; esac
	ip $family route replace "$dest" ${gateway:+via "$gateway"} \
		${interface:+dev "$interface" ${gateway:+onlink}} ${metric:+metric "$metric"} ||
		say "cannot add route to $dest by ${gateway:-$interface}"
}

# set_dns SOURCE SERVERS SEARCH: remembers what one source says and writes /etc/resolv.conf.
set_dns() {
	local server
	[ -n "$2$3" ] || return 0
	mkdir -p /run/tiny/dns
	{
		for server in $2; do echo "nameserver $server"; done
		[ -z "$3" ] || echo "search" $3
	} >"/run/tiny/dns/$1"
	# One at a time, else a source may be missing: DHCP clients come here beside the boot.
	until mkdir /run/tiny/dns.lock 2>/dev/null; do usleep 20000; done
	write_resolver
	rmdir /run/tiny/dns.lock
}

write_resolver() {
	local domains options
	options=$(grep -h '^options' /etc/resolv.conf 2>/dev/null)
	domains=$(sed -n 's/^search //p' /run/tiny/dns/* | tr '\n' ' ')
	{
		grep -h '^nameserver' /run/tiny/dns/* | awk '!seen[$0]++'
		[ -z "$domains" ] || echo "search ${domains% }"
		[ -z "$options" ] || echo "$options"
	} >/etc/resolv.conf
}

# Starts a DHCP client that stays for renewals; returns when it has a lease or after 4 s.
dhcp() {
	ip link set dev "$1" up
	udhcpc -i "$1" -b -t 4 -T 1 -A 5 -p "/run/tiny/udhcpc.$1.pid" -x "hostname:$(hostname)" \
		-O mtu -O staticroutes -O search >"/run/tiny/udhcpc.$1.log" 2>&1
}

# The network interfaces that are devices, by name.
interfaces() {
	local path
	for path in /sys/class/net/*; do
		[ -e "$path/device" ] && echo "${path##*/}"
	done
}

# by_mac MAC: the interface that has it.
by_mac() {
	local wanted name
	[ -n "$1" ] || return
	wanted=$(echo "$1" | tr 'A-F' 'a-f')
	for name in $(interfaces); do
		[ "$(cat "/sys/class/net/$name/address")" != "$wanted" ] || echo "$name"
	done
}
