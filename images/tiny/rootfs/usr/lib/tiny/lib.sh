# Shared by the guest's scripts.
export PATH=/usr/sbin:/usr/bin
seed=/run/seed

say() { echo "tiny: $*" >/dev/console; }

# The scalar at a path of the seed's trees (see json-tree.awk), or the default $2. Without
# starting a program: in an emulated guest, dozens of those are felt.
value() {
	local text
	if [ -f "$1" ]; then
		IFS= read -r -d '' text <"$1"
		printf '%s' "$text"
	else
		printf '%s' "$2"
	fi
}

# Addresses of this guest, without the loopback and link-local ones: "eth0 10.0.0.2/24" a line.
addresses() {
	ip -o addr show scope global | awk '{ print $2, $4 }'
}
