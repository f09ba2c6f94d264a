# Turns a JSON document into a directory tree, which a shell can read without quoting trouble:
# an object is a directory with an entry per key, an array one with entries 0000, 0001, ...,
# a string, number, true or false a file that holds it as it is. null leaves nothing.
# In keys %, / and line breaks become %25, %2f, %0a, and a leading dot %2e.
#
#   awk -v root=DIRECTORY -f json-tree.awk FILE
#
# DIRECTORY.numbers lists the files that were numbers. Lines before the document that start
# with # are skipped (#cloud-config); when nothing else is there, nothing is made.
# Exit status 1 and a line on stderr: not JSON.

BEGIN { RS = "\001" }

{ text = text $0 }

END {
	while (text ~ /^[ \t\r\n]*#/)
		if (!sub(/^[ \t\r\n]*#[^\n]*\n/, "", text)) text = ""
	if (text !~ /[^ \t\r\n]/) exit 0
	parse(text)
	make_directories()
	for (i = 1; i <= scalars; i++) write_scalar(i)
	printf "%s", numbers > (root ".numbers")
	close(root ".numbers")
}

# Quotes split the text into parts outside and inside strings; a part inside that ends in an
# odd number of backslashes goes on after its quote. Strings stay ranges of parts until they
# are written: joining them here would copy a long text once for every quote in it.
function parse(text,    count, i, first) {
	depth = 0
	path[0] = root
	want = "value"
	count = split(text, part, "\"")
	for (i = 1; i <= count; i++) {
		outside(part[i])
		if (i == count) break
		first = ++i
		while (i < count && quote_is_escaped(part[i])) i++
		if (i == count) fail("a string without an end")
		take_string(first, i)
	}
	if (depth > 0) fail("the document ends early")
	if (want != "end") fail("no value")
}

# Whether the quote after this text stands behind an odd number of backslashes.
function quote_is_escaped(text,    n) {
	n = length(text)
	while (n > 0 && substr(text, n, 1) == "\\") n--
	return (length(text) - n) % 2
}

# Reads what stands between two strings: punctuation, numbers, true, false, null.
function outside(text,    c) {
	while (1) {
		sub(/^[ \t\r\n]+/, "", text)
		if (text == "") return
		c = substr(text, 1, 1)
		if (match(text, /^[-+.0-9A-Za-z]+/)) {
			take_word(substr(text, 1, RLENGTH))
			text = substr(text, RLENGTH + 1)
			continue
		}
		text = substr(text, 2)
		if (c == "{" || c == "[") open_container(c)
		else if (c == "}" || c == "]") close_container(c)
		else if (c == ":" && want == "colon") want = "value"
		else if (c == "," && want == "comma") next_entry()
		else fail("unexpected " c)
	}
}

function open_container(c) {
	if (want != "value" && want != "value or close") fail("unexpected " c)
	directory[++directories] = place()
	depth++
	path[depth] = directory[directories]
	kind[depth] = c
	entry[depth] = 0
	want = (c == "{") ? "key or close" : "value or close"
}

function close_container(c) {
	if (depth == 0 || (kind[depth] == "{") != (c == "}")) fail("unexpected " c)
	if (want != "comma" && want !~ /or close$/) fail("unexpected " c)
	depth--
	want = depth ? "comma" : "end"
}

function next_entry() {
	entry[depth]++
	want = (kind[depth] == "{") ? "key" : "value"
}

# A string is complete, in part[first] to part[last]: a key or a value.
function take_string(first, last) {
	if (want == "key" || want == "key or close") {
		key[depth] = encode(joined(first, last))
		want = "colon"
		return
	}
	add_scalar("string")
	scalar_first[scalars] = first
	scalar_last[scalars] = last
}

function take_word(word) {
	if (word !~ /^(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)$/)
		fail("unexpected " substr(word, 1, 20))
	add_scalar(word)
	scalar_word[scalars] = word
	if (word == "null") scalars--
	else if (word ~ /^[-0-9]/) numbers = numbers scalar_path[scalars] "\n"
}

function add_scalar(what) {
	if (want != "value" && want != "value or close") fail("unexpected " what)
	scalar_path[++scalars] = place()
	scalar_first[scalars] = 0
	scalar_word[scalars] = ""
	want = depth ? "comma" : "end"
}

# The path of the entry that is being read.
function place() {
	if (depth == 0) return root
	if (kind[depth] == "{") return path[depth] "/" key[depth]
	return path[depth] "/" sprintf("%04d", entry[depth])
}

function encode(name) {
	gsub(/%/, "%25", name)
	gsub(/\//, "%2f", name)
	gsub(/\n/, "%0a", name)
	sub(/^\./, "%2e", name)
	return name == "" ? "%" : name
}

function make_directories(    i, command) {
	if (!directories) return
	command = "tr '\\n' '\\000' | xargs -0 mkdir -p"
	for (i = 1; i <= directories; i++) print directory[i] | command
	close(command)
}

# Strings go out in pieces of some hundred bytes: awk writes every piece at once, and longer
# ones cost more to put together.
function write_scalar(n,    file, i, buffer) {
	file = scalar_path[n]
	buffer = scalar_word[n]
	if (scalar_first[n])
		for (i = scalar_first[n]; i <= scalar_last[n]; i++) {
			buffer = buffer unescaped(string_part(i, scalar_last[n]))
			if (length(buffer) > 500) {
				printf "%s", buffer > file
				buffer = ""
			}
		}
	printf "%s", buffer > file
	close(file)
}

function joined(first, last,    i, result) {
	for (i = first; i <= last; i++) result = result unescaped(string_part(i, last))
	return result
}

# Part i of a string that ends in part[last]; the quote behind an earlier one belongs to it.
function string_part(i, last) {
	return i == last ? part[i] : part[i] "\""
}

function unescaped(text,    count, chunk, i, c, result) {
	if (!index(text, "\\")) return text
	count = split(text, chunk, "\\")
	result = chunk[1]
	for (i = 2; i <= count; i++) {
		c = substr(chunk[i], 1, 1)
		if (c in escape) result = result escape[c] substr(chunk[i], 2)
		# Two backslashes: the chunk after them holds no escape.
		else if (c == "") result = result "\\" chunk[++i]
		else if (c == "u") {
			result = result unicode(chunk, i)
			if (high_surrogate) i++
			result = result substr(chunk[i], 6)
		} else fail("unknown escape \\" c)
	}
	return result
}

BEGIN {
	escape["\""] = "\""
	escape["/"] = "/"
	escape["b"] = "\b"
	escape["f"] = "\f"
	escape["n"] = "\n"
	escape["r"] = "\r"
	escape["t"] = "\t"
}

# UTF-8 of \uXXXX at chunk[i], with the second half of a surrogate pair from chunk[i + 1].
function unicode(chunk, i,    code, low) {
	code = hex4(chunk[i])
	high_surrogate = 0
	if (code >= 55296 && code < 56320 && chunk[i] ~ /^u....$/ && chunk[i + 1] ~ /^u[dD][c-fC-F]/) {
		high_surrogate = 1
		low = hex4(chunk[i + 1])
		code = 65536 + (code - 55296) * 1024 + (low - 56320)
	}
	if (code < 128) return sprintf("%c", code)
	if (code < 2048) return sprintf("%c%c", 192 + int(code / 64), tail(code))
	if (code < 65536)
		return sprintf("%c%c%c", 224 + int(code / 4096), tail(int(code / 64)), tail(code))
	return sprintf("%c%c%c%c", 240 + int(code / 262144), tail(int(code / 4096)), \
		tail(int(code / 64)), tail(code))
}

function tail(code) { return 128 + code % 64 }

function hex4(text,    i, digit, code) {
	for (i = 2; i <= 5; i++) {
		digit = index("0123456789abcdef", tolower(substr(text, i, 1)))
		if (!digit || substr(text, i, 1) == "") fail("bad \\u escape")
		code = code * 16 + digit - 1
	}
	return code
}

function fail(reason) {
	print "not JSON: " reason > "/dev/stderr"
	exit 1
}
