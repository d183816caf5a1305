use strict;

our $disk = "\0" x 65536;

sub config { my ($key, $value) = @_; Nbdkit::debug("config $key=$value") }
sub open { return {} }
sub can_write { return 1 }
sub can_flush { return 1 }
sub get_size { return length $disk }

sub pread {
    my ($h, $count, $offset, $flags) = @_;
    return substr $disk, $offset, $count;
}

sub pwrite {
    my ($h, $buf, $offset, $flags) = @_;
    substr($disk, $offset, length $buf) = $buf;
}

sub zero {
    my ($h, $count, $offset, $flags) = @_;
    Nbdkit::set_error(95);
    die "no zeroes";
}

sub flush { }
