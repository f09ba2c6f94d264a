# Takes a multipart MIME message apart: part N becomes ROOT-N.type (in lower case, without its
# parameters), ROOT-N.encoding (in lower case) and ROOT-N.body, N being 001, 002, ...
#
#   awk -v root=ROOT -f mime-parts.awk FILE

{ sub(/\r$/, "") }

!boundary && match(tolower($0), /boundary="?[^";]+/) {
	boundary = substr($0, RSTART, RLENGTH)
	sub(/^[^=]*="?/, "", boundary)
	next
}

boundary && ($0 == "--" boundary || $0 == "--" boundary "--") {
	finish()
	in_header = ($0 == "--" boundary)
	type = encoding = ""
	if (in_header) name = root sprintf("-%03d", ++parts)
	next
}

in_header && /^[Cc]ontent-[Tt]ype:/ { type = header_value() }

in_header && /^[Cc]ontent-[Tt]ransfer-[Ee]ncoding:/ { encoding = header_value() }

in_header && /^$/ {
	print type > (name ".type")
	print encoding > (name ".encoding")
	printf "" > (name ".body")
	in_header = 0
	in_body = 1
	first = 1
	next
}

# The line break before a boundary belongs to the boundary.
in_body {
	printf "%s%s", first ? "" : "\n", $0 > (name ".body")
	first = 0
}

function header_value(    value) {
	value = tolower($0)
	sub(/^[^:]*:[ \t]*/, "", value)
	sub(/[ \t]*;.*$/, "", value)
	return value
}

function finish() {
	if (!in_body) return
	close(name ".type")
	close(name ".encoding")
	close(name ".body")
	in_body = 0
}
