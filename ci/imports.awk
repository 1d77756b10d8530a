# Says where the imports of Rust files are out of order: the standard library's first, then those of
# other crates, then our own (crate, super, self, and modules that the file declares). One blank
# line divides these groups, none lies within. What is exported by `pub use` has an order of its
# own. rustfmt could see to it, but its `group_imports` is an option of the nightly one only.
#
#     awk -f ci/imports.awk FILE...        fails if there are any

FNR == 1 { delete declared; group = 0 }

# A run of imports goes on over blank lines, comments and attributes.
/^ *(pub(\([a-z]+\))? )?mod [a-z0-9_]+[; ]/ { declared[module($0)] = 1 }
/^ *$/ { blank = 1; next }
/^ *(\/\/|#\[)/ { commented = 1; next }

/^ *use / {
    next_group = group_of($0)
    if (group > next_group)
        complain("imports of " names[next_group] " come before those of " names[group])
    else if (group && group < next_group && !blank)
        complain("a blank line divides imports of " names[group] " and of " names[next_group])
    else if (group == next_group && blank && !commented)
        complain("no blank line lies among imports of " names[group])
    group = next_group
    blank = commented = 0
    while ($0 !~ /;/ && (getline) > 0) {}
    next
}

{ group = blank = commented = 0 }

BEGIN { names[1] = "the standard library"; names[2] = "other crates"; names[3] = "our own" }
END { exit failed }

function group_of(line,    first) {
    sub(/^ *use (::)?/, "", line)
    first = line
    sub(/[^A-Za-z0-9_].*/, "", first)
    if (first == "std" || first == "core" || first == "alloc")
        return 1
    return first == "crate" || first == "super" || first == "self" || first in declared ? 3 : 2
}

function module(line) {
    sub(/^ *(pub(\([a-z]+\))? )?mod /, "", line)
    sub(/[; ].*/, "", line)
    return line
}

function complain(text) {
    print FILENAME ":" FNR ": " text
    failed = 1
}
