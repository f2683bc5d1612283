{{/* All containers of a gateway pod. */}}
{{- define "moefleet.gatewayEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: MOEFLEET_RUN_DIR
  value: /run/moefleet
- name: MOEFLEET_ENVOY_BINARY
  value: /usr/local/bin/envoy
- name: MOEFLEET_DRAIN_S
  value: {{ .Values.gateway.drainSeconds | quote }}
{{- if .Values.gateway.openai.enabled }}
- name: MOEFLEET_OPENAI_LISTEN
  value: "[::]:8081"
{{- end }}
- name: MOEFLEET_LOG_LEVEL
  value: {{ .Values.gateway.logLevel }}
{{- end -}}

{{/* Tokenizers of fleets, which the picker fetches and SMG reads. */}}
{{- define "moefleet.tokenizersMount" -}}
- name: tokenizers
  mountPath: /run/moefleet/tokenizers
{{- end -}}
