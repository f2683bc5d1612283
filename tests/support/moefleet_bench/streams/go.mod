module moefleet.io/bench/streams

go 1.24
