{{/* Names and labels. app.kubernetes.io/name and component are a contract with the operator: nothing renames them. */}}

{{- define "moefleet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "moefleet" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-moefleet" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Cluster-wide objects of two releases must not collide. */}}
{{- define "moefleet.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "moefleet.fullname" .) -}}
{{- end -}}

{{/* Of a part: dict "root" $ "component" "operator" */}}
{{- define "moefleet.selectorLabels" -}}
app.kubernetes.io/name: moefleet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "moefleet.labels" -}}
{{ include "moefleet.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "moefleet.controlKeySecret" -}}
{{- .Values.controlKey.existingSecret | default (printf "%s-control-key" (include "moefleet.fullname" .)) -}}
{{- end -}}

{{/* Namespaces with fleets, as a YAML list; empty in scope cluster. */}}
{{- define "moefleet.watchNamespaces" -}}
{{- if eq .Values.scope "namespaced" -}}
{{- .Values.watchNamespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Refuses what the schema cannot: values that contradict each other. */}}
{{- define "moefleet.check" -}}
{{- if and (eq .Values.scope "cluster") .Values.watchNamespaces -}}
{{- fail "watchNamespaces needs scope: namespaced; with scope: cluster all namespaces are watched" -}}
{{- end -}}
{{- end -}}
